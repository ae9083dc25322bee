"""Queries per second of ``voxseek serve`` beside ``clip-retrieval back``, same data, same machine.

The gallery (bench/galleries.py) lies in clip-retrieval's layout. Each side has its own index of it:
voxseek's as ``voxseek index build`` makes it, clip-retrieval's as autofaiss makes it by its own
rules, tuned for 10 ms a query. Each is asked by the same client, in clip-retrieval's protocol, with
the bytes that `ClipClient` sends for an embedding, by 1, 8 and 64 connections that each ask again
as soon as they are answered. Every answer is compared with what the side's own index says offline:
how many were lost, how many have other ids. Rounds alternate; medians are reported. Then voxseek is
asked in its batch forms, which the other doesn't have.

clip-retrieval runs in an environment of its own, as Flask serves it, without its CLIP model, which
a query by embedding doesn't touch (loading it wants the network):
``pip install clip-retrieval==2.45.0 'numpy<2' 'setuptools<81' 'faiss-cpu==1.12.0'``.

Example: python bench/bench_http.py WORK --peer-python peer/bin/python --rows 200000
         python bench/bench_http.py --table bench/results/http_*.json
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
PROTOCOL = "http/1"
K = 40  # ClipClient's num_images
ROOT = Path(__file__).resolve().parents[1]
SIDES = ("voxseek", "clip-retrieval")
KINDS = ("in", "shrunk")
NAME = "gallery"
BATCH = 256


@dataclass
class Connection:
    """One client of the load: a socket, what it asked, what has come so far."""

    number: int
    sock: socket.socket | None = None
    query: int = -1
    started: float = 0.0
    to_send: bytes = b""
    received: bytearray = field(default_factory=bytearray)


def ask(port: int, requests: list[bytes], n_connections: int, n_asked: int) -> dict[str, Any]:
    """Ask ``n_asked`` times by ``n_connections`` connections at once; return times and bodies.

    One thread and no library, so that the client takes little of the machine that it measures. A
    connection is kept where the server keeps it.
    """
    selector = selectors.DefaultSelector()
    seconds = np.full(n_asked, np.nan)
    bodies: list[bytes | None] = [None] * n_asked
    statuses = [0] * n_asked
    n_begun = 0

    def begin(connection: Connection) -> None:
        nonlocal n_begun
        if n_begun == n_asked:
            close(connection)
            return
        connection.query, n_begun = n_begun, n_begun + 1
        connection.to_send = requests[connection.query % len(requests)]
        connection.received.clear()
        connection.started = time.perf_counter()
        if connection.sock is None:
            connection.sock = socket.create_connection(("127.0.0.1", port))
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock.setblocking(False)
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        send(connection)

    def send(connection: Connection) -> None:
        assert connection.sock is not None
        try:
            connection.to_send = connection.to_send[connection.sock.send(connection.to_send) :]
        except BlockingIOError:
            pass
        except OSError:
            finish(connection, 0, None)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.to_send else 0)
        if selector.get_key(connection.sock).events != wanted:
            selector.modify(connection.sock, wanted, connection)

    def close(connection: Connection) -> None:
        if connection.sock is not None:
            selector.unregister(connection.sock)
            connection.sock.close()
            connection.sock = None

    def finish(connection: Connection, status: int, body: bytes | None) -> None:
        seconds[connection.query] = time.perf_counter() - connection.started
        statuses[connection.query], bodies[connection.query] = status, body
        head = bytes(connection.received[:200]).lower()
        if body is None or head.startswith(b"http/1.0") or b"connection: close" in head:
            close(connection)
        begin(connection)

    def receive(connection: Connection) -> None:
        assert connection.sock is not None
        try:
            piece = connection.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        connection.received += piece
        head, blank, rest = bytes(connection.received).partition(b"\r\n\r\n")
        if blank:
            lines = head.lower().split(b"\r\n")
            lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
            status = int(lines[0].split()[1])
            if lengths and len(rest) >= lengths[0]:
                finish(connection, status, rest)
                return
        if not piece:
            finish(connection, 0, None)

    connections = [Connection(number) for number in range(n_connections)]
    begun_at = time.perf_counter()
    for connection in connections:
        begin(connection)
    while selector.get_map():
        for key, events in selector.select():
            connection = key.data
            if connection.sock is None:
                continue
            if events & selectors.EVENT_WRITE:
                send(connection)
            if events & selectors.EVENT_READ and connection.sock is not None:
                receive(connection)
    total = time.perf_counter() - begun_at
    selector.close()
    return {"total": total, "seconds": seconds, "statuses": statuses, "bodies": bodies}


def post(path: str, body: bytes, content_type: str = "") -> bytes:
    """Return the bytes of a request; without Content-Type they are those of `ClipClient`."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "User-Agent: python-requests/2.32.5",
        "Accept-Encoding: gzip, deflate",
        "Accept: */*",
        "Connection: keep-alive",
        f"Content-Length: {len(body)}",
    ]
    if content_type:
        head.append(f"Content-Type: {content_type}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def knn_request(vector: np.ndarray) -> bytes:
    """Return what `ClipClient` 2.45.0 sends for an embedding, without its filters."""
    body = {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": vector.astype(float).tolist(),
        "deduplicate": False,
        "use_safety_model": False,
        "use_violence_detector": False,
        "indice_name": NAME,
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": K,
        "num_result_ids": K,
    }
    return post("/knn-service", json.dumps(body).encode())


@contextmanager
def voxseek(work: Path, options: argparse.Namespace) -> Iterator[int]:
    """Serve voxseek's index; yield the port."""
    command = [sys.executable, str(ROOT / "cli.py"), "serve", f"{NAME}={work / 'voxseek'}"]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with _started([*command, "--port", "0"], work / "voxseek_server.log") as child:
        assert child.stdout is not None
        address = child.stdout.readline().decode().strip()
        if not address:
            sys.exit((work / "voxseek_server.log").read_text()[-3000:])
        yield int(address.rpartition(":")[2])


@contextmanager
def clip_retrieval(work: Path, options: argparse.Namespace) -> Iterator[int]:
    """Serve clip-retrieval's index; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [options.peer_python, __file__, "--child", "serve", str(work), str(port)]
    with _started(command, work / "clip_retrieval_server.log") as child:
        while True:
            if child.poll() is not None:
                sys.exit((work / "clip_retrieval_server.log").read_text()[-3000:])
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield port


@contextmanager
def _started(command: list[str], log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log_path, "wb") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()


SERVERS: dict[str, Callable[..., Any]] = {"voxseek": voxseek, "clip-retrieval": clip_retrieval}


def prepare(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write gallery, queries, indexes and offline answers where they aren't yet."""
    from galleries import DIM, Gallery, write_gallery

    work.mkdir(parents=True, exist_ok=True)
    gallery = Gallery(options.family, options.rows, SEED)
    if not (work / "gallery").exists():
        print("gallery", file=sys.stderr)
        write_gallery(work / "gallery", gallery, min(options.rows, 100_000))
    for kind in KINDS:  # in float16, which the batch forms send: what is asked is the same
        queries = gallery.draw_queries(kind, options.queries, seed=2).astype(np.float16)
        np.save(work / f"queries_{kind}.npy", queries)
    if not (work / "voxseek" / "manifest.json").exists():
        print("index of voxseek", file=sys.stderr)
        command = [
            *(sys.executable, str(ROOT / "cli.py"), "index", "build"),
            *(str(work / "gallery"), str(work / "voxseek")),
            *("--space", f"simulated:final:1x{DIM}", "--memory", options.memory),
            *("--code", options.code),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if options.peer_python and not (work / "clip" / "image.index").exists():
        print("index of clip-retrieval", file=sys.stderr)
        subprocess.run([options.peer_python, __file__, "--child", "build", str(work)], check=True)
    return {
        "family": options.family,
        "n_rows": options.rows,
        "dim": DIM,
        "n_queries": len(KINDS) * options.queries,
        "k": K,
        "seed": SEED,
    }


def answers_of_voxseek(work: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rows that the engine finds, (n, K), and what the index is."""
    from retrieval.searching.engine import SearchEngine
    from retrieval.searching.request import SearchRequest

    engine = SearchEngine.open(work / "voxseek")
    rows = engine.search(_queries(work), SearchRequest(K, unsafe_from=None)).rows
    certificate = engine.manifest["certificate"]
    return rows, {"design": engine.plan.design, "effort": certificate["effort"]}


def answers_of_peer(work: Path, options: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rows that autofaiss's index finds, (n, K), and what the index is."""
    command = [options.peer_python, __file__, "--child", "answers", str(work)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return np.load(work / "answers_clip.npy"), json.loads(printed.strip().splitlines()[-1])


def _queries(work: Path) -> np.ndarray:
    stored = [np.load(work / f"queries_{kind}.npy") for kind in KINDS]
    return np.concatenate(stored).astype(np.float32)


def judge(answer: dict[str, Any], expected: np.ndarray) -> dict[str, Any]:
    """Return rates and times of a round, and how many answers were lost or wrong."""
    n_lost = n_wrong = 0
    for asked, (status, body) in enumerate(zip(answer["statuses"], answer["bodies"], strict=True)):
        if status != 200 or body is None:
            n_lost += 1
            continue
        rows = expected[asked % len(expected)]
        n_wrong += [hit["id"] for hit in json.loads(body)] != rows[rows >= 0].tolist()
    milliseconds = 1e3 * answer["seconds"]
    return {
        "queries_per_second": len(milliseconds) / answer["total"],
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "n_asked": len(milliseconds),
        "n_lost": n_lost,
        "n_wrong": n_wrong,
    }


def measure(
    who: str, work: Path, options: argparse.Namespace, expected: np.ndarray
) -> dict[str, Any]:
    """Ask one side at each concurrency, in a process that was just started; warm up first."""
    requests = [knn_request(vector) for vector in _queries(work)]
    found: dict[str, Any] = {"load_average_before": os.getloadavg()}
    n_asked = {"voxseek": options.asked, "clip-retrieval": options.asked_of_peer}[who]
    with SERVERS[who](work, options) as port:
        for concurrency in options.concurrency:
            ask(port, requests, concurrency, max(concurrency, n_asked // 10))
            answer = ask(port, requests, concurrency, n_asked)
            found[str(concurrency)] = judge(answer, expected)
        if who == "voxseek":
            found["batch"] = _measure_batches(port, work, options, expected)
    return found


def _measure_batches(
    port: int, work: Path, options: argparse.Namespace, expected: np.ndarray
) -> dict[str, Any]:
    """Ask by the batch: npy in JSON, and Arrow."""
    import pyarrow as pa

    queries = _queries(work).astype(np.float16)
    pieces = [np.arange(i, i + BATCH) % len(queries) for i in range(0, len(queries), BATCH)]
    json_requests, arrow_requests = [], []
    for piece in pieces:
        npy = io.BytesIO()
        np.save(npy, queries[piece])
        encoded = base64.b64encode(npy.getvalue()).decode()
        body = {"vectors_npy": encoded, "k": K, "unsafe_from": None}
        json_requests.append(post("/api/search", json.dumps(body).encode(), "application/json"))
        values = pa.array(queries[piece].ravel())
        column = pa.FixedSizeListArray.from_arrays(values, queries.shape[1])
        table = pa.table({"vector": column})
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        arrow_requests.append(
            post(
                f"/api/search.arrow?k={K}&unsafe_from=none",
                sink.getvalue(),
                "application/vnd.apache.arrow.stream",
            )
        )
    found = {}
    for form, requests in (("json", json_requests), ("arrow", arrow_requests)):
        ask(port, requests, 1, 2)
        answer = ask(port, requests, 1, options.batches)
        n_lost = n_wrong = 0
        for asked, (status, content) in enumerate(
            zip(answer["statuses"], answer["bodies"], strict=True)
        ):
            if status != 200 or content is None:
                n_lost += BATCH
                continue
            if form == "json":
                results = json.loads(content)["results"]
                rows = np.array([[hit["row"] for hit in each["hits"]] for each in results])
            else:
                with pa.ipc.open_stream(content) as reader:
                    rows = reader.read_all()["row"].to_numpy().reshape(BATCH, K)
            n_wrong += int((rows != expected[pieces[asked % len(pieces)]]).any(axis=1).sum())
        found[form] = {
            "queries_per_second": BATCH * options.batches / answer["total"],
            "n_asked": BATCH * options.batches,
            "n_lost": n_lost,
            "n_wrong": n_wrong,
        }
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, then let the sides take turns; return the record."""
    from machine import describe_machine

    work: Path = options.work
    data = prepare(work, options)
    sides = SIDES if options.peer_python else SIDES[:1]
    expected, indexes = {}, {}
    expected["voxseek"], indexes["voxseek"] = answers_of_voxseek(work)
    if "clip-retrieval" in sides:
        expected["clip-retrieval"], indexes["clip-retrieval"] = answers_of_peer(work, options)
    rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
    for number in range(options.rounds):
        for who in sides:
            print(f"round {number + 1} of {options.rounds}: {who}", file=sys.stderr)
            rounds[who].append(measure(who, work, options, expected[who]))
    return {
        "protocol": PROTOCOL,
        "machine": describe_machine(),
        "data": data,
        "indexes": indexes,
        "threads": options.threads,
        "rounds": rounds,
        "medians": {who: _medians(found) for who, found in rounds.items()},
    }


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians of rates and times, and sums of what was asked, lost and wrong."""

    def merge(several: list[dict[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for name in several[0]:
            values = [each[name] for each in several]
            if isinstance(values[0], dict):
                merged[name] = merge(values)
            elif name.startswith("n_"):
                merged[name] = sum(values)
            elif name != "load_average_before":
                merged[name] = statistics.median(values)
        return merged

    return merge(rounds)


def print_table(record: dict[str, Any]) -> None:
    """Print one line a side and concurrency, as Markdown."""
    data, medians = record["data"], record["medians"]
    print(f"{data['n_rows']:,} x {data['dim']} ({data['family']}), k = {data['k']}")
    for who, index in record["indexes"].items():
        print(f"{who}: {index['design']}, {index['effort']}")
    print("\n| clients | server | queries/s | p50 ms | p99 ms | lost | wrong | ratio |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for concurrency in [name for name in medians["voxseek"] if name != "batch"]:
        ours = medians["voxseek"][concurrency]["queries_per_second"]
        for who, found in medians.items():
            row = found[concurrency]
            ratio = ours / row["queries_per_second"]
            print(
                f"| {concurrency} | {who} | {row['queries_per_second']:.0f} | "
                f"{row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['n_lost']} | {row['n_wrong']} | "
                f"{'' if who == 'voxseek' else f'{ratio:.1f}'} |"
            )
    for form, row in medians["voxseek"]["batch"].items():
        print(
            f"| 1 | voxseek, batches of {BATCH}, {form} | {row['queries_per_second']:.0f} | | | "
            f"{row['n_lost']} | {row['n_wrong']} | |"
        )


def run_as_child(task: str, work: Path, arguments: list[str]) -> None:
    """Do one task of clip-retrieval, in its environment."""
    folder = work / "clip"
    if task == "build":
        from clip_retrieval.clip_index import clip_index

        clip_index(str(work / "gallery"), str(folder), copy_metadata=True, nb_cores=os.cpu_count())
        return
    if task == "answers":
        import faiss

        index = faiss.read_index(str(folder / "image.index"))
        rows = np.concatenate([index.search(query[None], K)[1] for query in _queries(work)])
        np.save(work / "answers_clip.npy", rows)
        infos = json.loads((folder / "image.json").read_text())
        design = {"design": infos.get("index_key"), "effort": infos.get("index_param")}
        print(json.dumps(design))
        return
    import all_clip

    all_clip.load_clip = lambda *_, **__: (None, None, None)
    from clip_retrieval.clip_back import clip_back

    (work / "indices_paths.json").write_text(json.dumps({NAME: str(folder)}))
    clip_back(
        indices_paths=str(work / "indices_paths.json"),
        port=int(arguments[0]),
        enable_mclip_option=False,
        provide_aesthetic_embeddings=False,
    )


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="folder of the pieces")
    parser.add_argument("--table", type=Path, help="print the table of a record, and no more")
    parser.add_argument("--peer-python", help="interpreter that has clip-retrieval")
    parser.add_argument("--family", default="cone", choices=["cone", "copies"])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=500, help="of each kind")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--asked", type=int, default=3000, help="of voxseek, a round")
    parser.add_argument("--asked-of-peer", type=int, default=500, help="of clip-retrieval, a round")
    parser.add_argument("--batches", type=int, default=12, help="of 256 queries, a round")
    parser.add_argument("--memory", default="1GiB", help="budget of voxseek's index")
    parser.add_argument("--code", default="ivf-rabitq", help="design of voxseek's index")
    parser.add_argument("--threads", type=int, help="of voxseek's searches; by default its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if options.table:
        print_table(json.loads(options.table.read_text()))
        return
    if options.work is None:
        parser.error("give WORK or --table RECORD")
    sys.path.insert(0, str(ROOT))
    record = run(options)
    print_table(record)
    from machine import hardware_name

    machine = record["machine"]
    size = f"{record['data']['family']}-{record['data']['n_rows']}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"http_{size}_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_as_child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
