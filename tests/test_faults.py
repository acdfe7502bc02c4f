"""What can go wrong between a trainer, the disk, an operator and the service, with real processes and files."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from app.artifacts import MANIFEST, verify_version
from app.errors import UnwritableError, VersionRefusedError
from app.main import create_app
from app.npz import map_npz, write_npz
from app.registry import (
    CURRENT,
    HISTORY,
    VERSIONS,
    activate,
    current,
    earlier,
    load_current,
    prune,
    publish,
    rollback,
)
from app.settings import Settings
from tests.clients import Clients, Question, ask, belongs_together, offline
from tests.fuzz_versions import pickles
from tests.models import forge, make_model, serve
from tests.publishers import check_flat_view, check_leftovers, recorded
from tests.servers import ROOT, Server, client_of, serving
from tests.switchers import Child

QUESTIONS = [Question(user_id, k) for user_id, k in ((1, 10), (2, 3), (7, 10), (9, 1), (2, 100), (1, 2))]
RELOAD_SECONDS = 0.05
TRAIN = (
    *("--dataset", "synthetic", "--synthetic-ratings", "4000", "--factors", "8", "--iterations", "2"),
    *("--evaluate", "none", "--no-report", "--promote", "always"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def follow(
    folder: Path, log: Path, *options: str, n_workers: int = 1, **settings: object
) -> AbstractContextManager[Server]:
    """Serve a folder by a process that looks for new versions all the time."""
    return serving(
        folder, log, "--no-access-log", *options, n_workers=n_workers, reload_seconds=RELOAD_SECONDS, **settings
    )


def put(path: Path, content: bytes | str) -> None:
    """Put content in a file's place, whatever its permissions; nobody sees half of it."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def check_service(server: Server, folder: Path) -> str:
    """The service answers, from a complete version, with that version's lists; returns the version."""
    version = server.health()["version"]
    verify_version(folder / VERSIONS / version)
    for question in QUESTIONS:
        assert belongs_together(folder, ask(server.client, question))
    return str(version)


# --- a publisher is killed


def test_the_service_goes_on_whenever_a_publisher_is_killed(folder: Path, tmp_path: Path) -> None:
    publish(folder, make_model(random_state=0))
    outcomes: Counter[str] = Counter()
    seeds = itertools.count(1)
    with (
        follow(folder, tmp_path / "log") as server,
        Child("told", folder, module="tests.publishers") as publisher,
        Clients(server.url, QUESTIONS, pause_seconds=0.02) as clients,
    ):
        for n in itertools.count(1, 5):
            before = current(folder)
            status = int(publisher.ask(f"{n} {next(seeds)}"))
            check_service(server, folder)
            active = current(folder)
            assert active is not None
            server.wait_until_it_serves(active)
            assert check_service(server, folder) == active
            if status == 0:
                break
            assert status == -signal.SIGKILL
            outcomes["old" if active == before else "new"] += 1
            outcomes["leftovers"] += bool(list(folder.glob(".tmp-*")))
            assert publisher.ask(f"0 {next(seeds)}") == "0"
            check_leftovers(folder)
            newest = current(folder)
            assert newest not in (None, active)
            check_flat_view(folder, newest)
            server.wait_until_it_serves(str(newest))
            assert check_service(server, folder) == newest
    assert outcomes["old"] >= 10, outcomes
    assert outcomes["new"] >= 3, outcomes
    assert outcomes["leftovers"] >= 10, outcomes
    assert outcomes["old"] + outcomes["new"] >= 20, outcomes
    assert len(clients.versions(folder)) > 20


@pytest.mark.slow
def test_the_service_goes_on_whenever_the_trainer_is_killed_and_the_next_run_cleans_up(
    folder: Path, tmp_path: Path
) -> None:
    def run(n: int, seed: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.killer", str(n), str(folder), *TRAIN, "--random-state", str(seed)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert run(0, 1).returncode == 0
    counted = run(0, 2)
    n_operations = int(counted.stderr.split("operations: ")[1])
    assert n_operations > 100
    outcomes: Counter[str] = Counter()
    questions = [Question(user_id, 10) for user_id in load_current(folder).users.ids[:4].tolist()]
    with follow(folder, tmp_path / "log") as server, Clients(server.url, questions, pause_seconds=0.02) as clients:
        for point in range(20):
            before = current(folder)
            died = run(1 + point * n_operations // 20, seed=10 + 2 * point)
            assert died.returncode == -signal.SIGKILL, died.stderr
            active = current(folder)
            assert active is not None
            for version in (folder / VERSIONS).iterdir():
                verify_version(version)
            outcomes["old" if active == before else "new"] += 1
            outcomes["leftovers"] += bool(list(folder.glob(".tmp-*")))
            server.wait_until_it_serves(active)
            done = run(0, seed=11 + 2 * point)
            assert done.returncode == 0, done.stderr
            check_leftovers(folder)
            newest = current(folder)
            check_flat_view(folder, newest)
            server.wait_until_it_serves(str(newest))
            assert belongs_together(folder, ask(server.client, questions[0]))
    assert outcomes["old"] >= 5, outcomes
    assert outcomes["new"] >= 3, outcomes
    assert outcomes["leftovers"] >= 5, outcomes
    assert clients.failures == []
    assert len({answer.version for answer in clients.answers}) >= 20


# --- a full disk


def limited(limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python where no file may become larger than ``limit`` bytes: writes fail as on a full disk."""
    script = (
        "import os, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "1000", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def check_full_disk(folder: Path, server: Server, limits: list[int]) -> None:
    old = current(folder)
    for limit in limits:
        done = limited(limit, "train_als.py", "--artifacts-dir", folder, *TRAIN)
        assert done.returncode == 1, (limit, done)
        assert f"cannot write to {folder}" in done.stderr, done.stderr
        assert "Check free space" in done.stderr
        assert "Traceback" not in done.stderr
        assert current(folder) == old
        check_leftovers(folder)
        check_flat_view(folder, old)
        assert [path.name for path in (folder / VERSIONS).iterdir()] == [old]
        assert check_service(server, folder) == old
        assert server.health()["reload_error"] is None


def test_a_trainer_that_runs_out_of_disk_says_so_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    publish(folder, make_model())
    with follow(folder, tmp_path / "log") as server:
        check_full_disk(folder, server, [1, 20_000])


@pytest.mark.slow
def test_it_does_so_wherever_the_disk_is_full(folder: Path, tmp_path: Path) -> None:
    publish(folder, make_model())
    with follow(folder, tmp_path / "log") as server:
        check_full_disk(folder, server, [0, 15, 25, 60, 300, 900, 2_000, 5_000, 14_000, 17_000, 40_000, 64_000])
        assert limited(100_000, "train_als.py", "--artifacts-dir", folder, *TRAIN, "--quiet").returncode == 0
        server.wait_until_it_serves(str(current(folder)))


SWITCH = """
import sys
from pathlib import Path
from app.errors import UnwritableError
from app.registry import activate, prune, rollback

folder, what, *version = Path(sys.argv[1]), *sys.argv[2:]
try:
    done = {"activate": activate, "rollback": rollback, "prune": prune}[what](folder, *version)
except UnwritableError as error:
    print(error)
    sys.exit(7)
print(getattr(done, "warnings", ()))
"""


def test_switching_on_a_full_disk_changes_nothing(folder: Path) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2, 3)]
    history = (folder / HISTORY).read_text()
    for what in (["activate", versions[0]], ["rollback"]):
        for limit in (0, 1, 20):
            done = limited(limit, "-c", SWITCH, folder, *what)
            assert done.returncode == 7, done
            assert f"cannot write to {folder}" in done.stdout
            assert "free space" in done.stdout
            assert current(folder) == versions[-1]
            assert (folder / HISTORY).read_text() == history
            check_flat_view(folder, versions[-1])
    assert limited(0, "-c", SWITCH, folder, "prune").returncode == 0  # makes room, and needs none
    assert current(folder) == versions[-1]
    assert activate(folder, versions[1]).warnings == ()
    check_leftovers(folder)


@pytest.mark.parametrize("n_bytes", [10, 30, 57, 60])
def test_a_line_of_history_that_was_cut_short_moves_nothing(folder: Path, n_bytes: int) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2, 3)]
    written = (folder / HISTORY).stat().st_size
    done = limited(written + n_bytes, "-c", SWITCH, folder, "activate", versions[0])
    assert done.returncode == 7, done
    assert (folder / HISTORY).stat().st_size == written + n_bytes
    for _ in range(2):
        assert current(folder) == versions[2]
        assert earlier(folder) == [versions[1], versions[0]]
        prune(folder)  # and whatever else makes good what a process that died left undone
    assert activate(folder, versions[0]).replaced == versions[2]
    assert rollback(folder).version == versions[2]
    assert rollback(folder).version == versions[1]
    check_flat_view(folder, versions[1])


def in_own_mounts(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount something, which nobody else sees and which ends with it."""
    if not shutil.which("unshare"):
        pytest.skip("mounting a small disk takes unshare")
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    tried = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    command = [*unshare, "sh", "-euc", script, "sh", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=400k tmpfs "$1" && exec "$2" -W error -m tests.publishers full "$1"'
    done = in_own_mounts(script, tmp_path, sys.executable)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refused"] > 5  # each one checked in the other process


def test_a_folder_that_can_only_be_read_is_served_and_refuses_changes(folder: Path, tmp_path: Path) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2, 3)]
    (tmp_path / "switch.py").write_text(SWITCH)
    script = """
        mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
        for what in "activate $4" rollback prune; do
            status=0
            PYTHONPATH=. "$2" "$3" "$1" $what || status=$?
            test $status = 7
        done
        exec "$2" -c 'import sys; from pathlib import Path; from app.registry import load_current
print(load_current(Path(sys.argv[1])).version)' "$1"
    """
    done = in_own_mounts(script, folder, sys.executable, tmp_path / "switch.py", versions[0])
    assert done.returncode == 0, done
    *refusals, served = done.stdout.splitlines()
    assert len(refusals) == 3
    assert all(f"cannot write to {folder}" in line for line in refusals)
    assert served == current(folder) == versions[-1]


# --- damage

SENTINEL = "a pickle was run"


def rewrite_npz(path: Path, **change: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = {name: np.array(array) for name, array in map_npz(path).items()}
    put(path, b"")  # nobody's map is written over
    write_npz(path, {name: change.get(name, lambda array: array)(array) for name, array in arrays.items()})


def not_a_number(array: np.ndarray) -> np.ndarray:
    array[0, 0] = np.nan
    return array


def repeat_first(folder: Path) -> None:
    ids = np.load(folder / "users.npy")
    ids[1] = ids[0]
    put(folder / "users.npy", b"")
    np.save(folder / "users.npy", ids)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    put(path, bytes(content))


def pickled(path: Path, wrapping: str) -> None:
    put(path, pickles(path.parents[3] / SENTINEL)[wrapping])


def cut(path: Path) -> None:
    put(path, path.read_bytes()[:-100])


def edit_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    put(folder / MANIFEST, json.dumps({**manifest, **values}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut short": (lambda folder: cut(folder / "als.npz"), "als.npz", "SHA-256"),
    "a bit flipped": (lambda folder: flip_a_bit(folder / "history.npz"), "history.npz", "SHA-256"),
    "missing": (lambda folder: (folder / "items.npy").unlink(), "items.npy", "is missing"),
    "pickle": (lambda folder: pickled(folder / "users.npy", "pickle"), "users.npy", "SHA-256"),
    "npz of pickles": (lambda folder: pickled(folder / "als.npz", "npz"), "als.npz", "SHA-256"),
    "unknown format": (lambda folder: edit_manifest(folder, format_version=99), MANIFEST, "format_version is 99"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST, "is missing"),
    "empty": (lambda folder: put(folder / "config.json", b""), "config.json", "SHA-256"),
}
# The same and more with checksums, sizes and the folder's name made right again, as if it had been published so.
FORGED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "cut short": (lambda folder: cut(folder / "history.npz"), "history.npz", "not a readable npz file"),
    "other shape": (
        lambda folder: rewrite_npz(folder / "als.npz", user_factors=lambda array: array[:-1]),
        "als.npz",
        "user_factors is float32",
    ),
    "NaN": (lambda folder: rewrite_npz(folder / "als.npz", item_factors=not_a_number), "als.npz", "NaN or infinity"),
    "ids that repeat": (repeat_first, "users.npy", "strictly rising"),
    "pickle": (lambda folder: pickled(folder / "items.npy", "pickle"), "items.npy", "strictly rising"),
    "npy of pickles": (lambda folder: pickled(folder / "items.npy", "npy"), "items.npy", "Python objects"),
    "npz of pickles": (lambda folder: pickled(folder / "history.npz", "npz"), "history.npz", "pickled objects"),
    "unknown format": (lambda folder: edit_manifest(folder, format_version="2"), MANIFEST, "format_version is '2'"),
}


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "artifacts"
    publish(folder, make_model())
    return folder


@pytest.fixture(scope="module")
def damaged_server(damaged_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with follow(damaged_folder, tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.mark.parametrize(
    ("damage", "is_forged", "seed"),
    [
        pytest.param(damage, is_forged, 100 + 50 * is_forged + n, id=f"{name}, forged" if is_forged else name)
        for is_forged, cases in ((False, DAMAGE), (True, FORGED))
        for n, (name, damage) in enumerate(cases.items())
    ],
)
def test_a_damaged_version_is_refused_and_the_old_one_goes_on(
    damaged_server: Server,
    damaged_folder: Path,
    damage: tuple[Callable[[Path], object], str, str],
    is_forged: bool,
    seed: int,
) -> None:
    server, folder = damaged_server, damaged_folder
    change, name, words = damage
    old = check_service(server, folder)
    new = publish(folder, make_model(random_state=seed), may_activate=lambda _active: False).folder
    content = {path: path.read_bytes() for path in new.rglob("*") if path.is_file()}
    n_refused = server.metric('recs_reloads_total{result="refused"}')
    if is_forged:
        active = forge(new, folder / VERSIONS, change)
    else:
        change(active := new)

    put(folder / CURRENT, f"{active.name}\n")
    health = server.wait_for(lambda health: health["reload_error"])
    time.sleep(5 * RELOAD_SECONDS)  # it looks a few times more
    reason = health["reload_error"]["reason"]
    assert str(active / name) in reason
    assert words in reason
    assert server.health() == health
    assert check_service(server, folder) == health["version"] == old
    assert server.client.get("/readyz").status_code == 200
    assert server.metric("recs_reload_failing") == 1
    assert server.metric('recs_reloads_total{result="refused"}') == n_refused + 1
    assert sum("Refused" in line and active.name in line for line in server.log.read_text().splitlines()) == 1
    check_new_service(folder, old, reason)

    if is_forged:
        put(folder / CURRENT, f"{new.name}\n")
    else:
        for path, intact in content.items():
            put(path, intact)
    server.wait_until_it_serves(new.name)
    assert check_service(server, folder) == new.name
    assert server.metric("recs_reload_failing") == 0
    assert activate(folder, new.name).version == new.name  # and so it gets into HISTORY
    assert not (folder.parent / SENTINEL).exists()
    if is_forged:
        shutil.rmtree(active)


def check_new_service(folder: Path, old: str, reason: str) -> None:
    """A service that is started now serves the version that was active before, and says why."""
    with serve(create_app(Settings(artifacts_dir=folder))) as request:
        health = request("/health").json()
        assert health["version"] == old
        assert health["reload_error"]["reason"] == reason
        assert request("/readyz").status_code == 200
        assert "recs_reload_failing 1" in request("/metrics").text


def test_a_service_that_starts_beside_damage_serves_the_version_before(folder: Path, tmp_path: Path) -> None:
    old = publish(folder, make_model(random_state=1)).version
    new = publish(folder, make_model(random_state=2)).folder
    intact = (new / "als.npz").read_bytes()
    cut(new / "als.npz")
    with follow(folder, tmp_path / "log") as server:
        assert check_service(server, folder) == old
        assert str(new / "als.npz") in server.health()["reload_error"]["reason"]
        assert server.log.read_text().count("Serving the earlier version") == 1
        put(new / "als.npz", intact)
        server.wait_until_it_serves(new.name)
        assert check_service(server, folder) == new.name


@pytest.mark.parametrize("content", ["", "20200101T000000Z-00000000\n", "../../etc\n"])
def test_a_damaged_pointer_is_refused_and_the_old_version_goes_on(
    damaged_server: Server, damaged_folder: Path, content: str
) -> None:
    server, folder = damaged_server, damaged_folder
    old = check_service(server, folder)
    put(folder / CURRENT, content)
    reason = server.wait_for(lambda health: health["reload_error"])["reload_error"]["reason"]
    assert str(folder / CURRENT) in reason
    assert check_service(server, folder) == old
    put(folder / CURRENT, f"{old}\n")
    server.wait_until_it_serves(old)


def fuzz(folder: Path, first: int, n: int, *, with_ranker: bool = False) -> Counter[str]:
    """Run mutations in two other processes at a time; returns what became of them."""
    counts: Counter[str] = Counter()
    processes = []
    for part in range(2):
        root = folder / f"part {part}"
        root.mkdir()
        arguments = [root, first + part * n // 2, n // 2, *["ranker"][: int(with_ranker)]]
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz_versions", *map(str, arguments)]
        processes.append((root, subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)))
    for root, process in processes:
        said, errors = process.communicate(timeout=500)
        assert process.returncode == 0, f"case {(root / 'case').read_text()}: {process.returncode}\n{errors}"
        found = json.loads(said)
        assert found["failures"] == {}
        assert found["counts"].pop("sentinel") is False
        counts.update(found["counts"])
    return counts


@pytest.mark.parametrize(
    ("first", "n", "n_mutated", "with_ranker"),
    [
        pytest.param(1, 2_100, 2_000, False, id="2,000"),
        pytest.param(1, 14, 10, True, id="10 with a ranker"),
        pytest.param(2_101, 20_600, 20_000, False, id="20,000", marks=pytest.mark.slow),
        pytest.param(15, 220, 200, True, id="200 with a ranker", marks=pytest.mark.slow),
    ],
)
def test_whatever_a_file_holds_a_version_is_refused_or_answers(
    tmp_path: Path, first: int, n: int, n_mutated: int, with_ranker: bool
) -> None:
    counts = fuzz(tmp_path, first, n, with_ranker=with_ranker)
    assert counts["mutated"] >= n_mutated  # the others came out as they were
    if n > 100:
        assert counts["refused"] > n / 2  # also with the checksums made right
        assert counts["answered"] > n / 10
        names = ("als.npz", "users.npy", "items.npy", "X_users_items.npz", "history.npz", "movie_map.csv", MANIFEST)
        ranker = ("model.txt", "tables.npz", "ranker.json") if with_ranker else ()
        assert all(counts[f"of {name}"] > n / 50 for name in (*names, "config.json", "metrics.json", *ranker)), counts


# --- switching under load


@pytest.mark.parametrize("seconds", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_no_request_fails_and_none_mixes_versions_while_two_workers_switch(
    folder: Path, tmp_path: Path, seconds: float
) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2)]
    assert all(offline(folder, versions[0], question) != offline(folder, versions[1], question) for question in KNOWN)
    config = tmp_path / "logging.json"
    config.write_text(json.dumps(LOG_WITH_PROCESS_IDS))
    options = ("--log-config", str(config))
    moves = 0
    with (
        follow(folder, tmp_path / "log", *options, n_workers=2, admin_token="secret") as server,  # noqa: S106
        Child("activate", folder) as operator,
        Clients(server.url, QUESTIONS, n_clients=8) as clients,
    ):
        end = time.monotonic() + seconds
        for moves in itertools.count():
            if time.monotonic() > end:
                break
            version = versions[moves % 2]
            if moves // 2 % 2:
                post(server, f"/models/{version}/activate", version)
            else:
                assert operator.ask(version) == f'"{version}"'
            time.sleep(0.2)
        for version in versions:  # in the end both workers serve the same
            post(server, f"/models/{version}/activate", version)
            wait_until_all_serve(server, version)
    seen = clients.versions(folder)
    assert seen.keys() == set(versions)
    assert min(seen.values()) > 20 * seconds, seen
    log = server.log.read_text()
    switches = Counter(re.findall(r"^(\d+) INFO Serving", log, re.MULTILINE))
    assert len(switches) == 2
    assert min(switches.values()) > moves / 3, (switches, moves)
    assert moves > seconds
    assert "ERROR" not in log


KNOWN = [question for question in QUESTIONS if question.user_id != 7]  # to whom factors matter
LOG_WITH_PROCESS_IDS = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"default": {"format": "%(process)d %(levelname)s %(message)s"}},
    "handlers": {"default": {"class": "logging.StreamHandler", "formatter": "default"}},
    "loggers": {"uvicorn": {"handlers": ["default"], "level": "INFO"}},
}


def post(server: Server, path: str, version: str) -> None:
    with client_of(server.url) as client:  # a connection of its own, to whichever worker takes it
        response = client.post(path, headers={"Authorization": "Bearer secret"})
    assert response.status_code == 200, response.text
    assert response.json()["serving"] == response.json()["version"] == version


def wait_until_all_serve(server: Server, version: str) -> None:
    """Ask over new connections, until 20 of them in a row come to a worker that serves the version."""
    deadline, in_a_row = time.monotonic() + 20, 0
    while in_a_row < 20:
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        with client_of(server.url) as client:
            found = client.get("/health").json()["version"]
        in_a_row = in_a_row + 1 if found == version else 0


# --- several at one folder


def test_two_trainers_and_an_operator_at_the_same_time(folder: Path) -> None:
    check_several(folder, n_models=12)


@pytest.mark.slow
def test_two_trainers_and_an_operator_for_longer(folder: Path) -> None:
    check_several(folder, n_models=60)


def check_several(folder: Path, n_models: int) -> None:
    first = publish(folder, make_model(random_state=0)).version
    with (
        Child("publish", folder, *range(1, 1 + n_models)) as one,
        Child("publish", folder, *range(1001, 1001 + n_models)) as other,
        Child("switch", folder, 1) as operator,
        Child("read", folder) as reader,
    ):
        for child in (reader, operator, one, other):
            child.tell()
        trained = [one.end(), other.end()]
        switched, read = operator.end(), reader.end()
    assert read["reads"] > n_models
    assert read["versions"] > 3
    moves = [(version, why) for _replaced, version, why in switched["moves"]]
    history = recorded(folder)  # fails on a line that is not whole
    made = [(first, "trained"), *map(tuple, trained[0]), *map(tuple, trained[1]), *moves]
    assert Counter(history) == Counter(made)
    for own in (*trained, moves):
        rest = iter(history)
        assert all(tuple(move) in rest for move in own)  # in the order in which they were made
    followed = Counter((before, after) for (before, _), after in itertools.pairwise(history))
    assert all(followed[replaced, (version, why)] > 0 for replaced, version, why in switched["moves"])
    assert {"activated", "rolled back"} <= {why for _, why in moves}
    assert current(folder) == history[-1][0]
    assert len({version for version, why in history if why == "trained"}) == 2 * n_models + 1
    check_flat_view(folder, current(folder))
    check_leftovers(folder)


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(folder: Path) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2)]
    with Child("hold", folder) as owner:
        owner.process.kill()
        owner.process.wait()
        assert activate(folder, versions[0], wait_seconds=0.3).version == versions[0]
        assert rollback(folder, wait_seconds=0.3).version == versions[1]


def test_the_lock_of_a_process_that_lives_is_respected(folder: Path) -> None:
    versions = [publish(folder, make_model(random_state=seed)).version for seed in (1, 2)]
    history = (folder / HISTORY).read_text()
    changes: list[Callable[[], object]] = [
        lambda: activate(folder, versions[0], wait_seconds=0.3),
        lambda: rollback(folder, wait_seconds=0.3),
        lambda: prune(folder, keep=1, wait_seconds=0.3),
        lambda: publish(folder, make_model(), wait_seconds=0.3),
    ]
    with Child("hold", folder) as owner:
        for change in changes:
            with pytest.raises(UnwritableError, match=rf"process {owner.process.pid} on "):
                change()
        assert (folder / HISTORY).read_text() == history
        assert current(folder) == versions[1]
    assert activate(folder, versions[0], wait_seconds=0.3).version == versions[0]


def test_there_is_nothing_to_roll_back_to_before_the_first(folder: Path) -> None:
    only = publish(folder, make_model()).version
    with pytest.raises(VersionRefusedError, match="nothing to roll back to"):
        rollback(folder)
    assert current(folder) == only
