"""Training of the embedded checkpoint: batches, what its masks let be seen, both losses, and going on from another."""

import json
import random
from itertools import islice

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from mlx_dgemma import generate_text, load
from mlx_dgemma.checkpoint.loading import EMBEDDED
from mlx_dgemma.demo import batches as training_batches
from mlx_dgemma.demo import training
from mlx_dgemma.demo.batches import (
    BUDGET,
    CANVAS,
    PATCH,
    POOLED,
    PROMPT,
    TOKENIZER,
    batches,
    collate,
    encode,
    encode_answer,
    render,
)
from mlx_dgemma.demo.optimizer import make_optimizers, orthogonalise
from mlx_dgemma.demo.vocabulary import BOS, END_OF_TURN, IMAGE, PAD, build_tokenizer
from mlx_dgemma.tasks import draw_examples, is_held_out
from mlx_dgemma.tasks.readings import draw_readings
from mlx_dgemma.tasks.talks import bare, draw_talks, reading, thoughtful, with_history

WINDOW = training.model_config().text_config.sliding_window


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = training.new_model().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.fill_(2.0)  # attention must matter, or a wrong mask would not show
    return model


@pytest.fixture(scope="module")
def batch():
    """Canvases that begin at six places, within the window and beyond it; of first and of later canvases."""
    drawn = draw_examples("count over four canvases", 0, 2)
    long = with_history(drawn[0], draw_examples("sums over a canvas", 0, 2))
    talks = [bare(draw_examples("sort", 0, 1)[0]), thoughtful(draw_examples("add", 0, 1)[0]), bare(drawn[1]), long]
    batch = collate([*talks, *islice(draw_talks(0, held_out=True), 2)], random.Random(4))
    assert batch.start.min() + CANVAS < WINDOW < batch.start.max()
    return batch


def test_rows_are_prompt_and_answer_and_the_canvas_is_one_of_the_answers():
    talks = [bare(e) for e in draw_examples("count over four canvases", 1, 3)] + list(
        islice(draw_talks(1, held_out=True), 20)
    )
    batch = collate(talks, random.Random(0))
    for i, talk in enumerate(talks):
        prompt, answer = encode(render(talk)), encode_answer(talk)
        n = len(prompt) + len(answer)
        assert batch.ids[i, :n].tolist() == [*prompt, *answer]
        weights = [PROMPT] * len(prompt) + [1.0] * len(answer) + [0.0] * (batch.read.shape[1] - n)
        assert batch.read[i].tolist() == pytest.approx(weights)
        begin = int(batch.start[i]) - len(prompt)
        assert 0 <= begin < len(answer) and begin % CANVAS == 0
        rest = answer[begin : begin + CANVAS]
        assert batch.clean[i].tolist() == rest + [PAD] * (CANVAS - len(rest))
    assert max(int(n) for n in batch.start) > CANVAS + 40  # later canvases are drawn too


def test_the_same_seed_makes_the_same_batches_and_none_holds_a_held_out_prompt():
    def drawn(seed):
        return list(islice(batches(seed, 8), 30))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.clean, b.clean) for a, b in zip(first, again, strict=True))
    assert any(a.ids.shape != b.ids.shape or not torch.equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))
    texts = [TOKENIZER.decode(row.tolist(), skip_special_tokens=False) for b in first for row in b.ids]
    prompts = [part.split("<turn|>")[0] for text in texts for part in text.split("<|turn>user\n")[1:]]
    assert len(prompts) > 150 and not any(is_held_out(p) for p in prompts if not p.startswith("ask "))
    assert {len(b.ids) for b in first} == {8, 6, 4}


def test_a_copy_is_made_of_pieces_of_its_text():
    batch = training_batches.copies(random.Random(1), 30)
    shortest = []
    for ids, start, clean, read in zip(batch.ids, batch.start, batch.clean, batch.read, strict=True):
        text = TOKENIZER.decode(ids[1:start].tolist())
        canvas = TOKENIZER.decode(clean.tolist())
        assert ids[0] == BOS and ids[start:].tolist() == clean.tolist() and len(canvas) == CANVAS
        assert not read[:start].any() and read[start:].all()
        pieces = []
        while canvas:  # greedily: the longest piece of the text, and the stop behind it
            n = max(n for n in range(len(canvas) + 1) if canvas[:n] in text)
            pieces.append(n)
            canvas = canvas[n + 1 :]
        shortest.append(max(pieces))
    assert min(shortest) >= 2 and max(shortest) > 30 and any(n < 14 for n in shortest)


def test_a_share_of_batches_are_copies():
    drawn = list(islice(batches(0, 8, copied=0.5), 60))
    copied = [b for b in drawn if b.ids.shape[1] == int(b.start[0]) + CANVAS and not b.read[:, : b.start[0]].any()]
    assert 15 < len(copied) < 45


def test_a_focus_changes_the_shares_of_tasks():
    def shares(focus):
        drawn = [b for b in islice(batches(0, 32, focus), 12) if len(b.ids) == 32]
        texts = [TOKENIZER.decode(row.tolist(), skip_special_tokens=False) for b in drawn for row in b.ids]
        return sum("<|turn>user\njson " in text for text in texts) / len(texts)

    assert shares({"json": 100}) > 0.7 > 0.2 > shares(None) > 0 == shares({"json": 0})


def assert_same(logits, alone):
    """A near tie of the router's may fall the other way with another rounding, at few
    positions; a wrong mask shows at most."""
    far = (logits - alone).abs().amax(-1) > 2e-3
    assert far.float().mean() < 0.3, f"{far.sum()} of {far.numel()} positions differ"


@torch.no_grad()
def test_canvases_see_what_the_cached_path_shows_them(model, batch):
    """Row by row: the reference encodes what stands before the canvas, with a cache of its own kind, and denoises."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = TOKENIZER.get_vocab_size()
    canvas = torch.randint(vocabulary, batch.clean.shape, generator=generator)
    previous = torch.randn((*canvas.shape, vocabulary), generator=generator)
    for self_conditioning in (None, previous):
        logits = training.encode_rows(model, batch)[1](canvas, self_conditioning)
        for i, start in enumerate(batch.start.tolist()):
            cache = DynamicCache(config=model.config.get_text_config())
            model.model.encoder(input_ids=batch.ids[i : i + 1, :start], cache=cache)
            own = None if self_conditioning is None else self_conditioning[i : i + 1]
            alone = model(decoder_input_ids=canvas[i : i + 1], cache=cache, self_conditioning_logits=own).logits
            assert_same(logits[i : i + 1], alone)


@torch.no_grad()
def test_a_picture_is_seen_as_the_reference_shows_it(model):
    """Row by row: the reference's own processor, one picture a row, its tokens both ways, all else causal."""
    talks = [reading(*own) for own in islice(draw_readings(0, held_out=True), 3)]
    batch = collate(talks, random.Random(0))
    processor = Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=POOLED, max_soft_tokens=BUDGET)
    causal, denoise = training.encode_rows(model, batch)
    logits = denoise(batch.clean, None)
    for i, talk in enumerate(talks):
        image = talk.messages[0]["content"][0]["image"]
        shown = processor([image], return_tensors="pt")
        n, start = int((batch.read[i] > 0).nonzero().max()) + 1, int(batch.start[i])
        ids = batch.ids[i : i + 1, :n]
        kinds = (ids == IMAGE).int()
        assert kinds.sum() == shown["num_soft_tokens_per_image"][0] and not batch.read[i, :n][kinds[0].bool()].any()
        for end in (n, start):
            cache, known = DynamicCache(config=model.config.get_text_config()), dict(mm_token_type_ids=kinds[:, :end])
            masks = model.model.encoder.create_masks_for_generate(
                model.config, torch.empty(1, end, 0), torch.ones(1, end).bool(), cache, torch.arange(end)[None], **known
            )
            hidden = model.model.encoder(
                input_ids=ids[:, :end], attention_mask=masks, cache=cache, pixel_values=shown["pixel_values"],
                image_position_ids=shown["image_position_ids"],
            ).last_hidden_state  # fmt: skip
            if end == n:
                alone = 30 * torch.tanh(model.lm_head(hidden) / 30)
                assert_same(causal[i : i + 1, :n], alone)
        alone = model(decoder_input_ids=batch.clean[i : i + 1], cache=cache).logits
        assert_same(logits[i : i + 1], alone)


@torch.no_grad()
def test_the_encoder_reads_prompt_and_answer_causally(model, batch):
    causal = training.encode_rows(model, batch)[0]
    total, count = 0.0, 0
    for i, n in enumerate((batch.read > 0).sum(1).tolist()):
        ids = batch.ids[i : i + 1, :n]
        hidden = model.model.encoder(input_ids=ids).last_hidden_state
        alone = 30 * torch.tanh(model.lm_head(hidden) / 30)
        assert_same(causal[i : i + 1, :n], alone)
        weights = batch.read[i, 1:n]
        total += (cross_entropy(alone[0, :-1], ids[0, 1:], reduction="none") * weights).sum().item()
        count += weights.sum().item()
    assert training.training_loss(model, batch)[1].item() == pytest.approx(total / count, rel=1e-4)


@torch.no_grad()
def test_the_denoiser_loss_is_over_every_position_of_the_canvas(model, batch, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size: torch.ones(*size))  # nothing corrupted
    logits = training.encode_rows(model, batch)[1](batch.clean, None)
    loss = cross_entropy(logits.flatten(0, 1), batch.clean.flatten())
    assert training.training_loss(model, batch)[0].item() == pytest.approx(loss.item(), rel=1e-5)


def test_orthogonalise_gives_singular_values_near_one():
    stack = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(stack))
    assert singular.min() > 0.5 and singular.max() < 1.5


@torch.no_grad()
def test_embeddings_are_carried_over_by_token(model, tmp_path):
    """From a checkpoint whose tokenizer has the tokens in another order, and knows fewer."""
    training.save(model, tmp_path / "same")
    same = training.load_start(tmp_path / "same")
    saved = {name: t.bfloat16().float() for name, t in model.state_dict().items()}
    assert all(torch.equal(t, saved[name]) for name, t in same.state_dict().items())

    vocabulary = build_tokenizer().get_vocab()
    kept = [token for token in vocabulary if token not in ("<|tool>", "{")]
    other = {token: i for i, token in enumerate(sorted(kept))}
    write_other(model, other, tmp_path / "other")
    carried = training.load_start(tmp_path / "other")
    table = carried.get_input_embeddings().weight
    for token, i in vocabulary.items():
        is_carried = torch.equal(table[i], saved["model.decoder.embed_tokens.weight"][i])
        assert is_carried == (token in other), token
    assert carried.lm_head.weight is table and carried.model.encoder.get_input_embeddings().weight is table
    others = {n: t for n, t in carried.state_dict().items() if not n.endswith(training.TABLES)}
    assert all(torch.equal(t, saved[name]) for name, t in others.items()) and len(others) == len(saved) - 3
    assert carried.config.text_config.vocab_size == len(vocabulary)


def write_other(model, vocabulary, folder):
    """The same model with another order of tokens."""
    training.save(model, folder)
    small = training.DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    rows = [build_tokenizer().get_vocab()[token] for token in vocabulary]
    table = small.get_input_embeddings().weight[rows].clone()
    small.resize_token_embeddings(len(vocabulary))
    small.get_input_embeddings().weight.copy_(table)
    small.to(torch.bfloat16).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"], content["added_tokens"] = vocabulary, []
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_the_embedded_checkpoint_is_one_to_go_on_from():
    assert training.load_start(EMBEDDED).config.text_config.vocab_size == TOKENIZER.get_vocab_size()


@pytest.mark.slow
def test_training_learns_and_saves_what_we_load(tmp_path):
    torch.manual_seed(0)
    model = training.new_model()
    optimizers, data = make_optimizers(model), batches(0, 4)
    losses, read = [], []
    for _ in range(20):
        denoiser, encoder = training.training_loss(model, next(data))
        (denoiser + encoder).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(denoiser.item())
        read.append(encoder.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]) and sum(read[-3:]) < 0.9 * sum(read[:3])
    training.save(model, tmp_path)
    ours, tokenizer = load(tmp_path)
    assert generate_text(ours, tokenizer, "upper x").steps_per_canvas
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab() and END_OF_TURN in ours.generation_config.eos_token_id


@pytest.mark.slow
def test_a_run_of_training_ends_in_a_checkpoint_and_its_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "TASKS", ["upper"])
    training.train(training.Plan(tmp_path / "out", steps=1, batch_size=4, start=EMBEDDED))
    told = capsys.readouterr().out
    assert told.startswith("exact match: upper ") and (tmp_path / "out" / "chat_template.jinja").exists()


def test_workers_step_with_the_mean_of_their_gradients(tmp_path, monkeypatch):
    """The second of two steps has a learning rate of 0, the first one of a hundredth."""
    monkeypatch.setattr(training, "quick_scores", lambda model, n: "")
    trained = training.train(training.Plan(tmp_path, steps=2, batch_size=4, seed=3, workers=2)).state_dict()
    torch.manual_seed(3)
    model = training.new_model()
    model.set_experts_implementation("grouped_mm")
    optimizers = make_optimizers(model)
    for seed in (3, 1003):
        torch.manual_seed(seed)
        losses = training.training_loss(model, next(batches(seed, 4)))
        (sum(losses) / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] /= 100
        optimizer.step()
    far = {name: (own - trained[name]).abs().max().item() for name, own in model.state_dict().items()}
    assert max(far.values()) < 1e-5, far
