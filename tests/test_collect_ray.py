"""The same evidence over a Ray cluster: the same bytes, in order, and nothing lost with a worker that dies."""

import contextlib
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from cli_helpers import ID, assert_refused, everything_in, make_world, run, spawn
from gemlens.errors import GemlensError, InputError, MissingPackageError
from gemlens.external.ray import ordered

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'gemlens[ray]'")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine, whose processes see the tests' modules."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"))
    text = "the cat and the dog sat in the sun, and then it rained. " * 900
    (made.model.parent / "text.txt").write_text(text, encoding="utf-8")
    return made


def arguments(world, out, *more):
    names = {
        "--model-id": world.model, "--sae-release": world.release, "--texts": world.model.parent / "text.txt",
        "--tokens": "6k", "--row-length": 16, "--examples": 5, "--out": out,
    }  # fmt: skip
    return ["collect", "features", *(str(part) for pair in names.items() for part in pair), *map(str, more)]


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_ray_and_in_process_write_the_same_bytes(cluster, world, tmp_path, capsys, no_token):
    assert run(capsys, *arguments(world, tmp_path / "local")).code == 0
    ran = run(capsys, *arguments(world, tmp_path / "ray", "--engine", "ray", "--workers", 2))
    assert ran.code == 0, ran.err
    local, over_ray = files_in(tmp_path / "local"), files_in(tmp_path / "ray")
    assert len(local) == 5
    assert over_ray == local


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker by /proc, which only Linux has")
def test_a_worker_killed_in_the_middle_of_the_command_changes_no_byte(cluster, world, tmp_path, capsys, no_token):
    long = ["--tokens", "40k", "--texts", tmp_path / "long.txt"]
    (tmp_path / "long.txt").write_text((world.model.parent / "text.txt").read_text("utf-8") * 4, encoding="utf-8")
    assert run(capsys, *arguments(world, tmp_path / "local", *long)).code == 0
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_at_work, args=[killed])
    killer.start()
    ran = run(capsys, *arguments(world, tmp_path / "ray", *long, "--engine", "ray", "--workers", 2))
    killer.join()
    assert ran.code == 0, ran.err
    assert killed, "no worker was seen at work"
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "local")


def kill_one_at_work(killed: list[int]) -> None:
    """The first worker that has been at its work for half a second, within a minute."""
    end = time.monotonic() + 60
    while not killed and time.monotonic() < end:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if process.read_bytes().startswith(b"ray::_Worker.run"):
                    time.sleep(0.5)
                    os.kill(int(process.parent.name), signal.SIGKILL)
                    killed.append(int(process.parent.name))
                    break
        time.sleep(0.02)


# What workers run: found by its module's name there.


def squares(pause=0.0):
    def square(number):
        time.sleep(pause)
        return number * number

    return square


def dying(folder):
    """Kills its own process at item 5, the first time."""

    def square(number):
        marker = Path(folder) / "died"
        if number == 5 and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(folder) / f"{number}-{os.getpid()}").touch()
        return number * number

    return square


def refusing():
    raise InputError("no such model; name another")


def broken():
    def fail(number):
        raise ZeroDivisionError(f"at {number}")

    return fail


def test_results_come_in_order_and_items_are_read_only_so_far_as_needed(cluster):
    read = []
    items = (read.append(number) or number for number in range(30))
    found = ordered(partial(squares, 0.01), items, workers=2)
    assert [next(found) for _ in range(3)] == [0, 1, 4]
    assert len(read) <= 3 + 2 * 2
    assert list(found) == [number * number for number in range(3, 30)]


def test_a_worker_killed_in_the_middle_loses_nothing(cluster, tmp_path):
    found = list(ordered(partial(dying, str(tmp_path)), range(12), workers=2))
    assert found == [number * number for number in range(12)]
    dead = (tmp_path / "died").read_text()
    assert not (tmp_path / f"5-{dead}").exists()  # what it was at is done by another process
    assert list(tmp_path.glob("5-*"))


def test_what_goes_wrong_in_a_worker_is_raised_here_in_one_line(cluster):
    with pytest.raises(InputError, match="no such model; name another"):
        list(ordered(refusing, range(3), workers=1))
    with pytest.raises(GemlensError, match="a worker failed: ZeroDivisionError: at 0"):
        list(ordered(broken, range(3), workers=1))


def test_more_workers_than_there_is_room_for_are_refused(cluster):
    with pytest.raises(InputError, match="has room for 2"):
        list(ordered(squares, range(3), workers=3))


def test_without_ray_the_package_is_named(world, tmp_path, no_token):
    code = "import sys; sys.modules['ray'] = None; from gemlens.app.cli import main; main()"
    ran = spawn(*arguments(world, tmp_path / "out", "--engine", "ray"), code=code)
    assert_refused(ran, "--engine ray needs the package ray", "gemlens[ray]")
    assert issubclass(MissingPackageError, GemlensError)
    assert everything_in(tmp_path) == []
    assert ID
