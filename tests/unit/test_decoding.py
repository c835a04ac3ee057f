"""Decoding in processes: the pictures are those that decoding here gives, and what kills a process fails alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import Image

from pgembed.decoding.picture import Limits, decode_picture
from pgembed.decoding.pool import ProcessPool
from pgembed.decoding.process import LARGE
from pgembed.decoding.turns import Places, Turns
from pgembed.encoders.builtin import preprocess
from pgembed.errors import MediaError
from tests import deadly

PHOTOS = sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg"))


def saved(picture: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


PNG = saved(Image.new("RGB", (40, 30), "red"))


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(2, seconds=20)
    yield made
    made.close()


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly.arm(tmp_path, monkeypatch)


def test_a_process_gives_the_picture_that_decoding_here_gives(pool: ProcessPool) -> None:
    large = Image.effect_noise((2500, 2000), 80).convert("RGB")  # in several parts, and in turn
    assert large.width * large.height > LARGE
    pictures = [path.read_bytes() for path in PHOTOS[:5]]
    pictures += [saved(large), saved(Image.new("LA", (3, 2), (9, 99))), saved(Image.new("I;16", (999, 1), 777))]
    for data in pictures:
        here, there = decode_picture(data), pool.decode(data)
        assert (there.mode, there.size) == ("RGB", here.size)
        assert there.tobytes() == here.tobytes()


def test_a_process_prepares_pictures_for_an_encoder(pool: ProcessPool) -> None:
    data = PHOTOS[0].read_bytes()
    found = pool.prepare(data, Limits(), "pgembed.encoders.builtin:preprocess", shown="x", announce=None)
    assert found.dtype == np.uint8
    assert np.array_equal(found, preprocess(decode_picture(data)))


def test_errors_of_a_process_are_those_of_decoding_here(pool: ProcessPool) -> None:
    for data in (b"", b"words", PNG[:60], b"%PDF-1.7"):
        with pytest.raises(MediaError) as here:
            decode_picture(data, shown="'a.png'")
        with pytest.raises(MediaError) as there:
            pool.decode(data, shown="'a.png'")
        assert (str(there.value), there.value.transient) == (str(here.value), here.value.transient)
    with pytest.raises(MediaError, match="40 x 30 pixels, more than 1,199"):
        pool.decode(PNG, Limits(max_pixels=1199))
    assert pool.decode(PNG).size == (40, 30)


@pytest.mark.usefixtures("armed")
@pytest.mark.parametrize(
    ("deed", "message", "transient"),
    [
        ("SEGV", r"'a.png' ended the process that decoded it \(SIGSEGV\)", False),
        ("KILL", r"'a.png' was killed \(SIGKILL\), as for want of memory", True),
        ("LOOP", r"'a.png' took more than 1 s to decode", False),
        ("FULL", "'a.png' does not fit into memory", True),
    ],
)
def test_a_picture_that_kills_its_process_fails_alone(deed: str, message: str, transient: bool) -> None:
    pool = ProcessPool(2, seconds=1)
    pictures = [PNG, deadly.picture(deed), PNG, PNG] * 2
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(pool.decode, data, shown="'a.png'") for data in pictures]
    for data, future in zip(pictures, futures, strict=True):
        if data is PNG:
            assert future.result().size == (40, 30)
            continue
        with pytest.raises(MediaError, match=message) as caught:
            future.result()
        assert caught.value.transient is transient
    pool.close()


@pytest.mark.usefixtures("armed")
@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux counts the memory of a process's data.")
def test_a_small_picture_may_not_take_a_gigabyte(pool: ProcessPool) -> None:
    with pytest.raises(MediaError, match="does not fit into memory"):
        pool.decode(deadly.picture("MORE"))
    assert pool.decode(PNG).size == (40, 30)


def test_a_process_that_died_at_rest_is_replaced(pool: ProcessPool) -> None:
    pool.decode(PNG)
    (process,) = pool._all  # pyright: ignore[reportPrivateUsage]
    os.kill(process._process.pid, signal.SIGKILL)  # pyright: ignore[reportPrivateUsage]
    process._process.wait()  # pyright: ignore[reportPrivateUsage]
    assert pool.decode(PNG).size == (40, 30)


@pytest.mark.usefixtures("armed")
def test_closing_ends_what_is_at_work() -> None:
    pool = ProcessPool(1, seconds=60)
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(pool.decode, deadly.picture("LOOP"))
        time.sleep(0.5)
        pool.close()
        with pytest.raises(MediaError):
            future.result(timeout=10)
    with pytest.raises(MediaError, match="the worker leaves"):
        pool.decode(PNG)


def test_signals_for_the_worker_do_not_end_its_processes(pool: ProcessPool) -> None:
    pool.decode(PNG)
    (process,) = pool._all  # pyright: ignore[reportPrivateUsage]
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process._process.pid, number)  # pyright: ignore[reportPrivateUsage]
    assert pool.decode(PNG).size == (40, 30)
    assert pool._all == {process}  # pyright: ignore[reportPrivateUsage]


def test_processes_end_with_a_worker_that_is_killed() -> None:
    program = (
        "import sys, time; from pgembed.decoding.pool import ProcessPool; pool = ProcessPool(1, 9)\n"
        "pool.decode(sys.stdin.buffer.read()); print(next(iter(pool._all))._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(PNG)
        worker.stdin.close()
        pid = int(worker.stdout.readline())
        worker.kill()
    until = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_nothing_of_the_folder_it_stands_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    pool = ProcessPool(1, seconds=20)
    assert pool.decode(PNG).size == (40, 30)
    pool.close()


def test_places_are_given_in_order() -> None:
    places = Places(1)
    order: list[str] = []

    def take(name: str) -> None:
        with places:
            order.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in ("second", "third")]
    with places:
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            while len(places._waiting) < waiting:
                time.sleep(0.001)
        order.append("first")
    take("fourth")
    for thread in threads:
        thread.join()
    assert order == ["first", "second", "third", "fourth"]


def test_large_pictures_take_turns() -> None:
    turns = Turns(10 * LARGE)
    most, now, lock = 0, 0, threading.Lock()

    def decode(pixels: int) -> None:
        nonlocal most, now
        with turns.hold(pixels):
            with lock:
                now += pixels
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= pixels

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decode, [4 * LARGE] * 20))
    assert 4 * LARGE < most <= 10 * LARGE
    decode(11 * LARGE)  # larger than all: alone, and not never


def test_a_large_picture_is_announced_before_it_is_decoded(pool: ProcessPool) -> None:
    told: list[int] = []
    pool.decode(saved(Image.new("L", (3000, 2000))), announce=told.append)
    pool.decode(PNG, announce=told.append)
    assert told == [6_000_000]
