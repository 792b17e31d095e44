"""What `load` gave is saved, moved and loaded again: all layouts, and the hub."""

import base64
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import counterpoint
from counterpoint.errors import UserError
from counterpoint.formats.moshi.published import MIMI_FILE, TEXT_FILE
from counterpoint.runtime.load import Loaded, from_pretrained, shape_of
from counterpoint.runtime.save import push_to_hub
from counterpoint.systems import single_stream, two_stream
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from tests.cli.talkers import write_published, write_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "model_type": "moshi",
    "lm_gen_config": {"temp": 0.7, "temp_text": 0.6},
    "model_id": {"sig": "ab12", "epoch": 3},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Kyutai's layout whose Mimi and tokeniser have names of their own."""
    folder = write_published(tmp_path_factory.mktemp("published") / "moshi")
    keys = json.loads((folder / "config.json").read_text())
    keys |= SETTINGS | {"mimi_name": "own_mimi.safetensors", "tokenizer_name": "own_words.model"}
    (folder / "config.json").write_text(json.dumps(keys))
    (folder / MIMI_FILE).rename(folder / "own_mimi.safetensors")
    (folder / TEXT_FILE).rename(folder / "own_words.model")
    return folder


def as_users_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the checker of annotations that the tests run under."""
    return inspect.unwrap(function)


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


def same_weights(found: Loaded, expected: Loaded) -> bool:
    return equal(found.system.state_dict(), expected.system.state_dict())


@pytest.mark.parametrize("shard_bytes", [None, 40_000])
def test_kyutai_folder_keeps_what_belongs_to_it(
    published: Path, tmp_path: Path, shard_bytes: int | None
) -> None:
    model = counterpoint.load(published)
    counterpoint.save(model, tmp_path / "saved", shard_bytes=shard_bytes)
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = counterpoint.load(tmp_path / "moved")
    assert same_weights(again, model)
    assert again.system.config == model.system.config
    keys = json.loads((tmp_path / "moved" / "config.json").read_text())
    expected = json.loads((published / "config.json").read_text())
    own = {"moshi_name"} if shard_bytes else set()  # several files have no such name
    assert {name: keys.get(name) for name in expected if name not in own} == {
        name: value for name, value in expected.items() if name not in own
    }
    words = [loaded.talker.tokenizer.encode_word("teacher") for loaded in (again, model)]
    assert words[0] == words[1]
    assert again.talker.codec.codebook_sizes == model.talker.codec.codebook_sizes
    files = [file.name for file in (tmp_path / "moved").glob("model*.safetensors")]
    assert (len(files) > 2) == (shard_bytes is not None)


def test_shapes_of_folders_are_known_without_weights(published: Path, tmp_path: Path) -> None:
    model = counterpoint.load(published)
    assert shape_of(published) == model.system.config
    counterpoint.save(model, tmp_path / "saved", shard_bytes=40_000)
    assert shape_of(tmp_path / "saved") == model.system.config


def test_an_unknown_type_of_weights_is_refused(published: Path) -> None:
    for dtype in ("float16", torch.float16):
        with pytest.raises(UserError, match="one of float32, bfloat16, int8: got .*float16"):
            as_users_call(counterpoint.load)(published, dtype=dtype)


def test_run_is_saved_as_a_checkpoint_without_an_optimiser(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    model = counterpoint.load(tmp_path / "run")
    with torch.no_grad():
        next(model.system.parameters()).add_(1.0)  # what the model is now is what is saved
    counterpoint.save(model, tmp_path / "saved")
    again = counterpoint.load(tmp_path / "saved")
    assert same_weights(again, model)
    assert again.trained_by == model.trained_by
    assert again.talker.codec.frame_rate_hz == 25.0
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {
        "manifest.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize(
    "system", [SingleStream(single_stream.tiny()), TwoStream(two_stream.tiny())], ids=["1", "2"]
)
def test_system_alone_is_saved(system: Any, tmp_path: Path) -> None:
    counterpoint.save(system, tmp_path / "saved")
    again = counterpoint.load(tmp_path / "saved")
    assert equal(again.system.state_dict(), system.state_dict())
    assert not again.system.training
    with pytest.raises(UserError, match="must be a checkpoint of a run: it is a model alone"):
        _ = again.tokenizer


def test_llama_folder_keeps_its_tokeniser_and_ids(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(["a b"], trainer)
    shape = single_stream.SingleStreamConfig(
        tower=single_stream.tiny().tower, vocab_size=tokenizer.get_vocab_size(), conv_taps=0
    )
    counterpoint.save(SingleStream(shape), tmp_path / "llama", form="published")
    config = tmp_path / "llama" / "config.json"
    keys = json.loads(config.read_text()) | {"bos_token_id": 0, "eos_token_id": [1]}
    config.write_text(json.dumps(keys))
    tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    (tmp_path / "llama" / "chat_template.jinja").write_text("{{ messages }}")
    model = counterpoint.load(tmp_path / "llama")
    counterpoint.save(model, tmp_path / "saved", shard_bytes=100_000)
    again = counterpoint.load(tmp_path / "saved")
    assert same_weights(again, model)
    assert (again.tokenizer.start_id, again.tokenizer.end_id) == (0, 1)
    assert again.tokenizer.encode("b").tolist() == tokenizer.encode("b").ids
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()


def test_what_cannot_be_saved_is_told(published: Path, tmp_path: Path) -> None:
    two = TwoStream(two_stream.tiny())
    with pytest.raises(UserError, match="has a published format: got a TwoStream"):
        counterpoint.save(two, tmp_path / "two", form="published")
    with pytest.raises(UserError, match="one of counterpoint, published: got 'weird'"):
        as_users_call(counterpoint.save)(two, tmp_path / "two", form="weird")
    assert not (tmp_path / "two").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="must be a new folder"):
        counterpoint.save(two, tmp_path / "full")
    assert {file.name for file in (tmp_path / "full").iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "must hold `weight_map`"),
        ('{"weight_map": {"a": 3}}', "must hold `weight_map`"),
        ('{"weight_map": {}}', "must name 1 to 1000 files"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "must name files of its own folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "must be a complete safetensors file"),
        ('{"weight_map": {"a": "config.json"}}', "must be a safetensors file"),
    ],
)
def test_hostile_index_is_told(published: Path, tmp_path: Path, index: str, message: str) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(published, folder)
    (folder / "model.safetensors").unlink()
    keys = json.loads((folder / "config.json").read_text())
    del keys["moshi_name"]
    (folder / "config.json").write_text(json.dumps(keys))
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message) as caught:
        counterpoint.load(folder)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- the hub


class Hub:
    """Stands for the server: answers what `huggingface_hub` asks over HTTP, from memory.

    Attributes:
        files: Content of every file, by repository and name.
        made: Repositories that were made, and whether they are private.
    """

    def __init__(self, httpx: Any) -> None:
        self._httpx = httpx
        self.files: dict[str, dict[str, bytes]] = {}
        self.made: list[tuple[str, bool]] = []

    def answer(self, request: Any) -> Any:
        path = request.url.path
        respond = self._httpx.Response
        if path == "/api/repos/create":
            asked = json.loads(request.content)
            name = f"{asked['organization']}/{asked['name']}"
            self.made.append((name, asked.get("private") or asked.get("visibility") == "private"))
            return respond(200, json={"url": f"https://huggingface.co/{name}"})
        if path == "/api/validate-yaml":
            return respond(200, json={"errors": [], "warnings": []})
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if "/preupload/" in path:
            asked = json.loads(request.content)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in asked
            ]
            return respond(200, json={"files": modes})
        if "/commit/" in path:
            lines = [json.loads(line)["value"] for line in request.content.splitlines()[1:]]
            added = {line["path"]: base64.b64decode(line["content"]) for line in lines}
            self.files.setdefault(name, {}).update(added)
            url = f"https://huggingface.co/{name}/commit/{COMMIT}"
            return respond(200, json={"commitUrl": url, "commitOid": COMMIT})
        if name not in self.files:
            return respond(404, headers={"X-Error-Code": "RepoNotFound"}, json={"error": "none"})
        if "/tree/" in path:
            own = self.files[name]
            entries = [
                {"type": "file", "path": file, "size": len(own[file]), "oid": COMMIT}
                for file in own
            ]
            return respond(200, json=entries)
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": file} for file in self.files[name]]
            return respond(200, json={"id": name, "sha": COMMIT, "siblings": siblings})
        content = self.files[name][path.split(f"/resolve/{COMMIT}/")[1]]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return respond(200, headers=headers | {"Content-Length": str(len(content))})
        return respond(200, headers=headers, content=content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server behind the HTTP client of the package; its cache is empty."""
    package = pytest.importorskip("huggingface_hub")
    httpx = pytest.importorskip("httpx2")
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    server = Hub(httpx)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nothing")
    before = _http._GLOBAL_CLIENT_FACTORY
    transport = httpx.MockTransport(server.answer)
    package.set_client_factory(lambda: httpx.Client(transport=transport, follow_redirects=True))
    yield server
    package.set_client_factory(before)


def test_model_goes_to_the_hub_and_comes_back(hub: Hub, published: Path) -> None:
    model = counterpoint.load(published)
    assert push_to_hub(model, "me/moshi").endswith(f"/me/moshi/commit/{COMMIT}")
    assert hub.made == [("me/moshi", True)]
    card = hub.files["me/moshi"]["README.md"].decode()
    assert 'counterpoint.load("hub:me/moshi")' in card
    assert same_weights(counterpoint.load("hub:me/moshi"), model)
    assert same_weights(from_pretrained("me/moshi", revision="v1"), model)
    assert same_weights(from_pretrained(published), model)
    assert shape_of(Path("hub:me/moshi")) == model.system.config


def test_trouble_with_the_hub_is_one_line(hub: Hub) -> None:
    with pytest.raises(UserError, match="The hub must have 'me/none'.*404") as caught:
        from_pretrained("me/none")
    assert "\n" not in str(caught.value)
