"""Pictures in object stores: read by the worker from the buckets that it was told of, and from no other."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgembed
from pgembed import Text
from pgembed.errors import InvalidInput, MediaError
from pgembed.media import Limits, MediaPolicy, MediaReader, read_media
from pgembed.worker import WorkerOptions

PHOTOS = Path(__file__).parents[1] / "data/photos"
PANDA = (PHOTOS / "panda.jpg").read_bytes()
SHOP = MediaPolicy(buckets=("s3://shop",))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """A client of that server, which the environment leads to; the buckets shop and other are there."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(name, value)
    client: Any = boto3.client("s3")
    for bucket in ("shop", "other"):
        client.create_bucket(Bucket=bucket)
    return client


@pytest.mark.parametrize("storage", ["column", "side"], indirect=True)
def test_pictures_in_a_bucket_are_encoded_and_those_elsewhere_fail_alone(
    database: psycopg.Connection,
    database_dsn: str,
    store: Any,  # noqa: ANN401
    storage: str,
) -> None:
    store.put_object(Bucket="shop", Key="photos/a panda #1?.jpg", Body=PANDA)
    store.put_object(Bucket="shop", Key="goldfish.jpg", Body=(PHOTOS / "goldfish.jpg").read_bytes())
    store.put_object(Bucket="shop", Key="empty.jpg", Body=b"")
    store.put_object(Bucket="other", Key="panda.jpg", Body=PANDA)
    database.execute("CREATE TABLE product (id int PRIMARY KEY, photo text)")
    keys = ["shop/photos/a panda #1?.jpg", "shop/goldfish.jpg", "shop/none.jpg", "shop/empty.jpg", "other/panda.jpg"]
    for number, key in enumerate(keys):
        database.execute("INSERT INTO product VALUES (%s, %s)", [number, f"s3://{key}"])
    with pgembed.connect(database_dsn) as db:
        db.add_encoder("shop", "builtin:lite")
        db.attach("product", "embedding", encoder="shop", image={"column": "photo", "as": "url"}, storage=storage)
        db.work(WorkerOptions(media=SHOP, max_attempts=1), until_idle=True)
        assert db.search("product", Text("a panda"), limit=1)[0].id == 0
        assert db.search("product", Text("a fish"), limit=1)[0].id == 1
        failures = {int(failure.key[0]): failure.error for failure in db.failures("product")}
    assert failures == {
        2: "The picture 's3://shop/none.jpg' is not there.",
        3: "The picture 's3://shop/empty.jpg' is empty.",
        4: "The picture 's3://other/panda.jpg' is in a bucket that is not allowed. Allow it: --allow-bucket s3://other",
    }


def test_a_folder_of_a_bucket_is_allowed_without_the_rest(store: Any) -> None:  # noqa: ANN401
    for key in ("photos/a.jpg", "photos2/a.jpg", "a.jpg"):
        store.put_object(Bucket="shop", Key=key, Body=PANDA)
    with MediaReader(MediaPolicy(buckets=("s3://shop/photos/",))) as reader:
        assert reader.read("s3://shop/photos/a.jpg", "url") == PANDA
        for url in ("s3://shop/photos2/a.jpg", "s3://shop/a.jpg", "gs://shop/photos/a.jpg", "s3://shop2/photos/a.jpg"):
            with pytest.raises(MediaError, match="not allowed"):
                reader.read(url, "url")
        for url in ("s3://shop/photos/../a.jpg", "s3://shop/photos/./a.jpg", "s3://shop/", "s3://shop", "s3:///a.jpg"):
            with pytest.raises(MediaError, match="names no object"):
                reader.read(url, "url")


def test_an_object_over_the_limit_is_cut_off(store: Any) -> None:  # noqa: ANN401
    store.put_object(Bucket="shop", Key="large", Body=bytes(5001))
    with pytest.raises(MediaError, match="has 5,001 bytes or more, and the limit is 5,000") as caught:
        read_media("s3://shop/large", "url", MediaPolicy(buckets=("s3://shop",), limits=Limits(max_bytes=5000)))
    assert not caught.value.transient


def test_a_store_that_does_not_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(MediaError, match=r"did not arrive within 0\.5 s") as caught:
            read_media("s3://shop/a", "url", MediaPolicy(buckets=("s3://shop",), limits=Limits(timeout=0.5)))
        assert caught.value.transient


def test_buckets_are_off_unless_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("A store was asked for.")

    monkeypatch.setattr("pgembed.buckets.BucketReader._store", never)
    for policy in (MediaPolicy(), MediaPolicy(allow_urls=True, any_path=True)):
        with pytest.raises(MediaError, match="Allow it: --allow-bucket gs://shop"):
            read_media("gs://shop/a.png", "url", policy)


@pytest.mark.parametrize("bucket", ["shop", "s3://", "https://shop", "file:///shop", "memory://shop", "s3://shop/../a"])
def test_what_names_no_bucket_is_refused_at_once(bucket: str) -> None:
    with pytest.raises(InvalidInput, match=r"names no bucket\. Write s3://NAME"):
        MediaPolicy(buckets=(bucket,))


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MediaError) as caught:
        read_media("s3://shop/a.png", "url", SHOP)
    assert str(caught.value) == (
        "The picture 's3://shop/a.png' needs the extra 'cloud', which is not installed."
        ' Install it: pip install "pgembed-multimodal[cloud]"'
    )


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_the_other_stores_are_asked_the_same_way(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    from fsspec.asyn import get_loop

    asked: list[tuple[str, int]] = []

    class Store:
        loop = get_loop()

        async def _cat_file(self, path: str, *, start: int, end: int) -> bytes:
            asked.append((path, end - start))
            if path.endswith("secret"):
                raise PermissionError("Access denied.")
            return PANDA

    monkeypatch.setattr(fsspec, "filesystem", lambda name, **_: Store() if name == scheme else None)
    with MediaReader(MediaPolicy(buckets=(f"{scheme}://shop",))) as reader:
        assert reader.read(f"{scheme.upper()}://shop/a.jpg", "url") == PANDA
        with pytest.raises(MediaError, match=r"may not be read: Access denied\. Give the worker credentials") as caught:
            reader.read(f"{scheme}://shop/secret", "url")
    assert not caught.value.transient
    assert asked[0] == ("shop/a.jpg", Limits().max_bytes + 1)
