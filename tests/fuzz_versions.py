"""Damaged versions by the thousand, in a process of its own, since what is damaged enough may bring a process down.

python -m tests.fuzz_versions FOLDER FIRST N          mutate a file of a small version, N times over
python -m tests.fuzz_versions FOLDER FIRST N ranker   the same with a second stage

Each case is a function of its number. It is loaded twice: with the checksums as they were, which must refuse it, and
with checksums, sizes and the folder's name made right again, as if the damage had been published. Then it may be
refused, or else must answer like any model: over HTTP, with 200, and with numbers as scores. Nothing but ArtifactError
may come out of loading, and whatever the files hold, the list of versions must be answered.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import logging
import pickle
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.artifacts import MANIFEST, TrainedModel, content_digest, write_version
from app.errors import ArtifactError
from app.main import create_app
from app.npz import write_npz
from app.recommender import Recommender
from app.registry import VERSIONS
from app.serving import Served, load_warm
from app.settings import Settings
from tests.models import make_model, trained

CASE = "case"  # file that holds the number of the case under way, for when the process does not come back
N_KEPT = 5  # failures of a kind that are reported
TOKEN = {"Authorization": "Bearer secret"}

METRICS = {  # of each kind that the service looks at
    "stage": "test",
    "protocols": {"rated": {"als": {"recall@10": 0.1, "ndcg@10": 0.05}, "ranker": {"recall@10": 0.2, "ndcg@10": 0.1}}},
    "promotion": {"activate": True, "reasons": ["no version was active"]},
    "second_stage": {"dials": {"novelty": [{"value": 0.1, "changes": {"ndcg@10": {"difference": -0.01}}}]}},
}

Files = dict[str, bytes]
Edit = Callable[[random.Random, bytes], bytes]


# --- what can happen to bytes


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice([len(content) - 1, len(content) // 2, rng.randrange(len(content) + 1)])]


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    start, n = rng.randrange(len(content)), rng.choice([1, 4, 8, 64, 512])
    n = min(n, len(content) - start)
    filler = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    return content[:start] + filler + content[start + n :]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start = rng.choice([0, len(content), rng.randrange(len(content))])
    return content[:start] + rng.randbytes(rng.choice([1, 8, 64])) + content[start:]


def _remove(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice([1, 8, 64]) :]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start, n = rng.randrange(len(content)), rng.choice([1, 8, 64])
    return rng.choice([content * 2, content[:start] + content[start : start + n] * 2 + content[start + n :]])


def _empty(_rng: random.Random, _content: bytes) -> bytes:
    return b""


# --- what can happen to arrays

_DTYPES = ("<i1", "<i4", "<i8", ">i8", "<u4", "<u8", "<f2", "<f4", ">f4", "<f8", "?", "<c8", "S8", "U4", "<M8[s]")
_NUMBERS = (np.nan, np.inf, -np.inf, 0, -1, 1, 1e30, -1e30, 3.4e38, 2**31 - 1, 2**31, -(2**31), 2**62, -(2**62), 0.1)


def _edit_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return rng.choice([_edit_values, _edit_values, _edit_shape, _edit_dtype, _edit_order])(rng, array)


def _edit_values(rng: random.Random, array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    if changed.size == 0:
        return changed
    if changed.dtype.kind not in "iuf":
        return np.zeros_like(changed)
    value = np.array(rng.choice(_NUMBERS)).astype(changed.dtype)
    places = rng.choice([slice(None), *[rng.randrange(changed.size)] * 3, slice(rng.randrange(changed.size), None)])
    changed.reshape(-1)[places] = value
    return changed


def _edit_shape(rng: random.Random, array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    return rng.choice(
        [
            array[:-1] if array.ndim else array,
            array[:0] if array.ndim else array,
            array[1:] if array.ndim else array,
            np.concatenate([flat, flat[:1]]),
            array[None],
            array[..., None],
            array.T.copy(),
            flat,
            np.array(flat[0] if flat.size else 0),
            array[..., :-1] if array.ndim else array,
        ]
    )


def _edit_dtype(rng: random.Random, array: np.ndarray) -> np.ndarray:
    try:
        return array.astype(rng.choice(_DTYPES))
    except (TypeError, ValueError):
        return array


def _edit_order(rng: random.Random, array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    shuffled = flat[rng.sample(range(flat.size), flat.size)] if flat.size else flat
    return rng.choice([np.sort(flat), flat[::-1], shuffled]).reshape(array.shape)


def _edit_npz(rng: random.Random, content: bytes, scratch: Path) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = rng.choice(list(arrays))
    kind = rng.randrange(12)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[f"{name}_"] = arrays.pop(name)
    elif kind == 2:
        arrays["more"] = arrays[name]
    elif kind == 3:
        arrays[name], arrays[other] = arrays[other := rng.choice(list(arrays))], arrays[name]
    else:
        arrays[name] = _edit_array(rng, arrays[name])
    if rng.random() < 0.1:
        return _zip(arrays, rng.choice([np.savez, np.savez_compressed]))
    write_npz(scratch, arrays)
    return scratch.read_bytes()


def _zip(arrays: dict[str, np.ndarray], save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def _edit_npy(rng: random.Random, content: bytes) -> bytes:
    return _npy(_edit_array(rng, np.load(io.BytesIO(content))))


def _npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


_HEADERS = (
    (b"'descr': '<", b"'descr': '>"),
    (b"'<f4'", b"'<i4'"),
    (b"'<f4'", b"'|O' "),
    (b"'<i8'", b"'|O' "),
    (b"'<i8'", b"'<f8'"),
    (b"'<i8'", b"'<M8'"),
    (b"'<i8'", b"'|V8'"),
    (b"'<i8'", b"'|S8'"),
    (b"False", b"True "),
    (b"'shape': (", b"'shape': -"),
    (b"'shape': (", b"'shape':(-"),
    (b"'shape': (", b"'shape':(9"),
    (b"'shape'", b"'shade'"),
    (b"{'descr'", b"['descr'"),
    (b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
    (b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
    (b"v\x00{", b"\xff\xff{"),
)


def _edit_header(rng: random.Random, content: bytes) -> bytes:
    """Edit an array's header where it stands, in an npy file or in an npz file that stores it."""
    found, instead = rng.choice([(old, new) for old, new in _HEADERS if old in content])
    places = [place for place in range(len(content)) if content.startswith(found, place)]
    place = rng.choice(places)
    return content[:place] + instead + content[place + len(found) :]


# --- what can happen to text

_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\ud800", "\0", "é" * 300, -1, 0, 1, 2, 1.5, 1e308, -1e308, 5e-324, 2**31, 2**63),
    *(10**400, float("nan"), float("inf"), [], {}, [[]], {"a": {"b": {}}}, [1, "x", None], "../x", "manifest.json"),
)
_BEYOND_JSON = ("\ud800", float("nan"), float("-inf"), 10**400)  # or beyond what others make of it
_TEXTS = (
    *("", "x", "-1", "0", "1.5", "nan", "inf", "1e400", "9" * 30, "9" * 400, "9" * 5000, "1_0", " 1", "٣", '"', "a|b"),
    *("\0", "||", "x" * 200_000, "\n", "é"),
)
_RAW_JSON = (b"[]", b"null", b"1", b'"x"', b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"\xef\xbb\xbf{}")


def _edit_json(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(_RAW_JSON)
    values = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 3])):
        places = list(_places(values))
        if not places:
            break
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[f"{key}_"] = holder.pop(key)
        else:
            holder[key] = deepcopy(rng.choice(_BEYOND_JSON if rng.random() < 0.2 else _VALUES))
    return json.dumps(values).encode()


def _places(values: Any) -> Any:
    """Yield (holder, key) of every value inside."""
    if isinstance(values, dict | list):
        for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
            yield values, key
            yield from _places(value)


def _edit_csv(rng: random.Random, content: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    n = rng.randrange(len(rows))
    column = rng.randrange(len(rows[n]))
    kind = rng.randrange(10)
    if kind == 0:
        del rows[n]
    elif kind == 1:
        rows.insert(n, list(rows[n]))
    elif kind == 2:
        del rows[n][column]
    elif kind == 3:
        rows[n].append("x")
    elif kind == 4:
        rows[n].reverse()
    elif kind == 5:
        rng.shuffle(rows)
    else:
        rows[n][column] = rng.choice(_TEXTS)
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator=rng.choice(["\n", "\r\n", "\r"])).writerows(rows)
    text = stream.getvalue().encode("utf-8", "surrogatepass")
    return rng.choice([text] * 6 + [text.replace(b'"', b""), text + b'"', b"\xef\xbb\xbf" + text])


def _edit_trees(rng: random.Random, content: bytes) -> bytes:
    """Change a number or a line of LightGBM's text."""
    lines = content.split(b"\n")
    n = rng.choice([place for place, line in enumerate(lines) if b"=" in line])
    name, _, values = lines[n].partition(b"=")
    words = values.split(b" ")
    words[rng.randrange(len(words))] = rng.choice([b"-1", b"0", b"nan", b"inf", b"1e300", b"99999", b"", b"x", b"2"])
    lines[n] = rng.choice([name + b"=" + b" ".join(words), b"", name, name + b"=", values])
    return b"\n".join(lines)


# --- pickles


class _Payload:
    """Unpickled, it creates a file: whoever sees that file knows that a model was run as code."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return Path.touch, (self.sentinel,)


def pickles(sentinel: Path) -> dict[str, bytes]:
    """Return pickles in the wrappings that numpy, joblib and people put them in."""
    payload = _Payload(sentinel)
    objects = np.array([payload, None], dtype=object)
    names = ("user_factors", "item_factors", "indptr", "indices", "item_index", "rating", "timestamp")
    return {
        "pickle": pickle.dumps(payload),
        "npy": _npy(objects, allow_pickle=True),
        "npz": _zip(dict.fromkeys(names, objects), np.savez),
        "compressed npz": _zip(dict.fromkeys(names, objects), np.savez_compressed),
    }


def see_that_pickles_run(sentinel: Path) -> None:
    """See that each pickle would do what it is there for, were it unpickled; numpy's files with its own loader."""
    for name, content in pickles(sentinel).items():
        loaded = np.load(io.BytesIO(content), allow_pickle=True)
        if name.endswith("npz"):
            _ = loaded["user_factors"]
        sentinel.unlink()  # FileNotFoundError, were it not there


# --- one case


@dataclass
class Fuzz:
    """A version whose files are mutated one case after another."""

    root: Path
    model: TrainedModel
    other: TrainedModel
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sentinel = self.root / "sentinel"
        see_that_pickles_run(self.sentinel)
        self.pickles = list(pickles(self.sentinel).values())
        self.files = self._write("original", self.model)
        self.other_files = self._write("other", self.other)
        versions = self.root / "artifacts" / VERSIONS
        versions.mkdir(parents=True)
        self.folder = (self.root / "original").rename(versions / self._name(self._manifest()))
        self.on_disk = self.files
        self.app = create_app(Settings(artifacts_dir=self.root / "artifacts", reload_seconds=0, admin_token="secret"))  # noqa: S106
        self.runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)  # which failures show
        self.client = httpx.AsyncClient(transport=transport, base_url="http://service", trust_env=False)

    def _write(self, name: str, model: TrainedModel) -> Files:
        (self.root / name).mkdir()
        write_version(self.root / name, model, trained_at="2020-01-01T00:00:00+00:00")
        found = [path for path in sorted((self.root / name).rglob("*")) if path.is_file()]
        return {path.relative_to(self.root / name).as_posix(): path.read_bytes() for path in found}

    def _manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files[MANIFEST])
        return found

    def _name(self, manifest: dict[str, Any]) -> str:
        return f"20200101T000000Z-{content_digest(manifest['files'])}"

    def mutate(self, rng: random.Random) -> tuple[str, str, Files]:
        """Return the name of a file, what happens to it, and all files after that."""
        documents = self.model.documents if rng.random() < 0.02 else {}  # which nobody reads
        name = rng.choice(list(documents) or [name for name in self.files if name not in self.model.documents])
        content, suffix = self.files[name], Path(name).suffix
        bytewise: list[Edit] = [_cut, _flip, _flip, _overwrite, _insert, _remove, _repeat, _empty]
        by_kind: dict[str, list[Edit]] = {
            ".npz": [*[lambda rng, content: _edit_npz(rng, content, self.root / "scratch")] * 3, _edit_header],
            ".npy": [_edit_npy, _edit_npy, _edit_header],
            ".json": [_edit_json],
            ".csv": [_edit_csv],
            ".txt": [_edit_trees],
        }
        kind = rng.random()
        if kind < 0.05:
            return name, "pickle", {**self.files, name: rng.choice(self.pickles)}
        if kind < 0.10:
            second = rng.choice(list(self.files))
            return name, f"swapped with {second}", {**self.files, name: self.files[second], second: content}
        if kind < 0.15 and name in self.other_files:
            return name, "of another model", {**self.files, name: self.other_files[name]}
        if kind < 0.18:
            return name, "missing", {other: found for other, found in self.files.items() if other != name}
        edit = rng.choice(by_kind.get(suffix, bytewise) if kind < 0.65 else bytewise)
        return name, edit.__name__, {**self.files, name: edit(rng, content)}

    def run(self, n: int) -> None:
        (self.root / CASE).write_text(str(n))
        name, what, files = self.mutate(random.Random(f"case {n}"))  # noqa: S311
        if files == self.files:
            self.counts["unchanged"] += 1
            return
        self.counts["mutated"] += 1
        self.counts[f"of {Path(name).name}"] += 1
        try:
            as_they_were = self._load(files, self._name(self._manifest()))
            self._list(files)
            # The manifest is under no checksum: what it says beside the list of files may change unnoticed.
            if as_they_were and (name != MANIFEST or json.loads(files[MANIFEST])["files"] != self._manifest()["files"]):
                raise AssertionError("loaded with the checksums as they were")
            forged, folder = self._forge(files)
            made_right = self._load(forged, folder)
            self._list(forged)
            self.counts["answered" if made_right else "refused"] += 1
        except Exception as error:
            self.counts["failed"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.failures.setdefault(f"{type(error).__name__} in {place.filename}, line {place.lineno}", []).append(
                f"case {n}, {name} {what}: {str(error)[:300]}"
            )

    def _forge(self, files: Files) -> tuple[Files, str]:
        """Make checksums, sizes and name right, as far as there is a manifest that can be written."""
        try:
            manifest = json.loads(files[MANIFEST])
            manifest["files"] = {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                for name, content in files.items()
                if name != MANIFEST
            }
            return {**files, MANIFEST: json.dumps(manifest).encode()}, self._name(manifest)
        except (KeyError, TypeError, ValueError, RecursionError):
            return files, self._name(self._manifest())

    def _load(self, files: Files, name: str) -> bool:
        """Load a version, and ask it if it can be loaded; tells whether it could."""
        self._put(files, name)
        try:
            recommender = load_warm(self.folder)
        except ArtifactError as error:
            if str(self.folder) not in str(error):
                raise AssertionError(f"it does not say which version: {error}") from error
            self.app.state.serving.now = Served()
            return False
        else:
            self.app.state.serving.now = Served(recommender)
            self.runner.run(self._ask(recommender))
            return True

    def _list(self, files: Files) -> None:
        """List the versions, if anything has changed that a list says."""
        if any(files.get(name) != self.files[name] for name in (MANIFEST, "config.json", "metrics.json")):
            self.runner.run(self._get("/models", headers=TOKEN))

    def _put(self, files: Files, name: str) -> None:
        """Make the folder hold these files; what is mapped of earlier ones stays as it was."""
        self.folder = self.folder.rename(self.folder.with_name(name))
        for file in self.on_disk.keys() | files.keys():
            if files.get(file) != self.on_disk.get(file):
                (self.folder / file).unlink(missing_ok=True)
                if file in files:
                    (self.folder / file).write_bytes(files[file])
        self.on_disk = files

    async def _ask(self, recommender: Recommender) -> None:
        await self._get("/health")
        ids = recommender.model.users.ids
        users = [user for user in dict.fromkeys([*ids[:3].tolist(), *ids[-1:].tolist()]) if user >= 1]
        liked = ",".join(str(movie) for movie in recommender.model.items.ids[1:4].tolist() if movie >= 1)
        for path in (
            *(f"/recommend?user_id={user}" for user in users),
            *(f"/recommend?user_id={user}&ranker=false" for user in users[1:2] if recommender.ranker),
            *(f"/recommend?user_id={user}&explain=true&novelty=0.2&diversity=0.3&calibrate=0.2" for user in users[1:2]),
            f"/recommend_cold?liked={liked}&explain=true",
            "/recommend_cold",
        ):
            for result in (await self._get(path))["results"]:
                assert isinstance(result["score"], int | float), f"{path}: {result}"

    async def _get(self, path: str, **options: Any) -> Any:
        response = await self.client.get(path, **options)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text[:300]}"
        return response.json()


def main(root: Path, first: int, n: int, *, with_ranker: bool) -> None:
    warnings.simplefilter("ignore")  # numpy's, about numbers that are none
    logging.disable()
    model = trained()[1] if with_ranker else make_model()
    other = make_model([(user, 1 + user % 5, 4.5) for user in range(1, 9)], factors=3)
    fuzz = Fuzz(root, replace(model, metrics=METRICS), other)
    for case in range(first, first + n):
        fuzz.run(case)
    counts = {**fuzz.counts, "sentinel": fuzz.sentinel.exists()}
    failures = {kind: cases[:N_KEPT] for kind, cases in fuzz.failures.items()}
    print(json.dumps({"counts": counts, "failures": failures}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), with_ranker="ranker" in sys.argv[4:])
