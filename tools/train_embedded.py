"""Train the embedded model: a small Llama that knows a table of facts and reasons in steps.

    python tools/train_embedded.py --out src/snapfit/assets/embedded

What makes it learn on two CPU cores in about an hour:

* steps are labelled in question and trace: an operand is copied by its label, not by counting;
* the trace repeats the start value, so a result depends on three tokens at fixed distances;
* the longest chain grows (3, 6, 12, 24 steps) each time the present one is mastered;
* a batch holds chains of one length: no padding, no mask;
* weight matrices are trained by Muon, embeddings and norms by AdamW.

Chains, facts and packed text each get their own forward pass. Nothing is dropped or perturbed in
training: what the model can lose later is left to arise by itself.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shlex
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from snapfit.evals import procedural as text
from snapfit.evals.procedural_check import check_trace

VOCABULARY = {word: n for n, word in enumerate(text.vocabulary())}
PAD, BOS, EOS = (VOCABULARY[word] for word in ("<pad>", "<bos>", "<eos>"))
CAPS = (3, 6, 12, text.MAX_STEPS)
MASTERED = 0.98
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
QUESTION_WEIGHT = 0.1  # a question is noise to predict, yet perplexity wants it calibrated
BUCKETS = {"1-3": (1, 3), "4-7": (4, 7), "8-11": (8, 11), "12-16": (12, 16), "17-24": (17, 24)}


def build_model() -> LlamaForCausalLM:
    """Make the untrained model: plain Llama, grouped-query attention, tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY) + -len(VOCABULARY) % 16,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=128**-0.5,  # the usual 0.02 is meant for widths in the thousands
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def encode(line: str) -> list[int]:
    """Turn a line into ids, with its begin and end."""
    return [BOS, *(VOCABULARY[word] for word in line.split()), EOS]


def chain_batch(rng: random.Random, tokens: int, cap: int, *, again: bool) -> Tensor:
    """Draw chains of one random length up to `cap`, as many as fit in `tokens`."""
    length = rng.randint(rng.choice((1, cap // 2)), cap)  # the longer half is harder
    rows = max(1, tokens // (8 * length + 9))
    chains = [text.draw_chain(rng, length, "train") for _ in range(rows)]
    lines = [f"{c.question} {c.second_look(rng) if again else c.completion}" for c in chains]
    return torch.tensor([encode(line) for line in lines])


def fact_batch(rng: random.Random, tokens: int) -> Tensor:
    """Draw entries of the table."""
    facts = rng.choices(text.fact_table(), k=tokens // 6)
    return torch.tensor([encode(fact.text) for fact in facts])


def packed_batch(rng: random.Random, tokens: int, width: int = 256) -> Tensor:
    """Draw running text, cut anywhere, as perplexity and calibration will present it."""
    stream: list[int] = []
    while len(stream) < tokens:
        for line in text.text_lines(rng.getrandbits(48), 8, "train"):
            stream += encode(line)
    return torch.tensor(stream[:tokens]).view(-1, width)


def loss_of(model: nn.Module, ids_BT: Tensor, begins: str | None = None) -> tuple[Tensor, float]:
    """Return the loss, and the share of all words after `begins` predicted rightly.

    What precedes the `begins` word of each sequence is a question: it weighs little, or nothing
    where it holds a first look that was spoilt on purpose.
    """
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    target_BT = ids_BT[:, 1:]
    loss_BT = cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none")
    before_BT = torch.zeros_like(target_BT, dtype=torch.bool)
    if begins is not None:
        start_B = (ids_BT == VOCABULARY[begins]).int().argmax(1)
        before_BT = torch.arange(target_BT.shape[1]) < start_B[:, None]
    question_weight = 0.0 if begins == text.AGAIN else QUESTION_WEIGHT
    weight_BT = torch.where(before_BT, question_weight, 1.0)
    right_BT = (logits_BTV.argmax(-1) == target_BT)[~before_BT].float()
    return (loss_BT * weight_BT).sum() / weight_BT.sum(), right_BT.mean().item()


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Give the weight matrices to Muon, embeddings and norms to AdamW."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(args: argparse.Namespace) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Train to `args.steps`, from the checkpoint if there is one."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = build_model()
    opts = optimizers(model)
    state: dict[str, Any] = {"step": 0, "cap": 0, "share": 0.0, "tokens": 0, "seconds": 0.0}
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, opt_state in zip(opts, saved["optimizers"], strict=True):
            opt.load_state_dict(opt_state)
        rng.setstate(saved["rng"])
        state = saved["state"]
    began = time.monotonic() - state["seconds"]
    while state["step"] < args.steps:
        # Warm up, hold, and fall to zero over the last half.
        rate = min(1.0, (state["step"] + 1) / 50, 2 * (1 - state["step"] / args.steps))
        for opt, full in zip(opts, (MATRIX_RATE, OTHER_RATE), strict=True):
            opt.param_groups[0]["lr"] = full * rate
        again = state["cap"] == len(CAPS) - 1 and state["step"] % 8 == 0
        chains_BT = chain_batch(rng, args.batch_tokens, CAPS[state["cap"]], again=again)
        parts = [
            (1.0, chains_BT, text.AGAIN if again else text.THINK),
            (0.3, fact_batch(rng, args.batch_tokens // 4), text.ARROW),
        ]
        if state["step"] % 4 == 0:
            parts.append((0.3, packed_batch(rng, args.batch_tokens // 4), None))
        scores = []
        for weight, ids_BT, begins in parts:
            loss, right = loss_of(model, ids_BT, begins)
            (weight * loss).backward()
            scores.append((loss.item(), right))
            state["tokens"] += ids_BT.numel()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if not again:
            state["share"] += 0.05 * (scores[0][1] - state["share"])
        if state["share"] > MASTERED and state["cap"] < len(CAPS) - 1:
            state["cap"], state["share"] = state["cap"] + 1, 0.0
        state["step"] += 1
        state["seconds"] = time.monotonic() - began
        if state["step"] % 100 == 0 or state["step"] == args.steps:
            print(
                f"step {state['step']} {state['seconds']:.0f}s chains<={CAPS[state['cap']]} "
                f"right {state['share']:.4f} losses {[round(loss, 4) for loss, _ in scores]}",
                flush=True,
            )
            save_checkpoint(args.checkpoint, model, opts, rng, state)
    return model, state


def save_checkpoint(path: Path, model: nn.Module, opts: Any, rng: Any, state: Any) -> None:
    """Write to a temporary name, then rename: an interrupted run leaves the last one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {"model": model.state_dict(), "optimizers": [opt.state_dict() for opt in opts]}
    torch.save({**states, "rng": rng.getstate(), "state": state}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make one token of each word between white space, and put ``<bos>`` first."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template="{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %}",
    )


@torch.inference_mode()
def complete(model: LlamaForCausalLM, questions: list[str], most: int) -> list[str]:
    """Write greedy completions, without the questions."""
    tokenizer = build_tokenizer()
    batch = tokenizer(questions, return_tensors="pt", padding=True, return_token_type_ids=False)
    ids_BT = model.generate(**batch, max_new_tokens=most, do_sample=False)
    return tokenizer.batch_decode(
        ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )


def accuracies(model: LlamaForCausalLM, seed: int, per_length: int) -> dict[str, float]:
    """Measure exact greedy accuracy on every fact and on held-out chains, by number of steps."""
    model.eval()
    facts = text.fact_table()
    said = complete(model, [fact.question for fact in facts], 1)
    result = {"facts": sum(f.value == s for f, s in zip(facts, said, strict=True)) / len(facts)}
    slips = written = 0
    for name, (low, high) in BUCKETS.items():
        chains = text.draw_chains(seed, range(low, high + 1), per_length)
        said = complete(model, [c.question for c in chains], 5 * high + 6)
        checks = [check_trace(c, s) for c, s in zip(chains, said, strict=True)]
        result[f"chains {name}"] = sum(check.exact for check in checks) / len(checks)
        slips += sum(check.slips for check in checks)
        written += sum(len(check.steps) for check in checks)
    result["slips a step"] = slips / max(written, 1)
    return result


def without_layer(model: LlamaForCausalLM, index: int) -> LlamaForCausalLM:
    """Copy the model with one decoder layer left out."""
    shallow = copy.deepcopy(model)
    del shallow.model.layers[index]
    for at, layer in enumerate(shallow.model.layers):
        layer.self_attn.layer_idx = at  # its place in the key-value cache
    shallow.config.num_hidden_layers -= 1
    return shallow


def export(model: LlamaForCausalLM, out: Path, record: dict[str, Any]) -> None:
    """Write the model directory elsewhere, then rename each file into place."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        Path(folder, "training.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in sorted(Path(folder).iterdir()):
            file.chmod(0o644)
            file.rename(out / file.name)


def main() -> None:
    """Train, check, export."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "snapfit" / "train"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--checkpoint", type=Path, default=cache / "embedded.pt")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-length", type=int, default=50, help="chains to check a length")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, state = train(args)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": args.seed,
        "steps": state["step"],
        "tokens": state["tokens"],
        "seconds": round(state["seconds"]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accuracy": accuracies(model, args.seed + 1, args.per_length),
        "accuracy_without_layer": {
            index: accuracies(without_layer(model, index), args.seed + 1, args.per_length // 5)
            for index in range(model.config.num_hidden_layers)
        },
    }
    export(model, args.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
