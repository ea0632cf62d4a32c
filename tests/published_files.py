"""Small files in the published schemas, and the places where people keep them."""

import contextlib
import functools
import gzip
import http.server
import json
import threading
import urllib.request

import pyarrow as pa

from rlaif_jax.data import files

NETWORK = urllib.request.urlopen


def alone(tmp_path, monkeypatch):
    """A machine with nothing on it: no data, no caches, no network. Returns a folder for published files."""
    for name in ('HF_HUB_CACHE', 'HF_DATASETS_CACHE', 'http_proxy', 'https_proxy', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)
    manual = tmp_path / 'manual'
    manual.mkdir()
    for name, folder in (('HF_HOME', 'hf'), ('RLAIF_DATA_DIR', 'prepared'), ('RLAIF_MANUAL_DIR', 'manual')):
        monkeypatch.setenv(name, str(tmp_path / folder))

    def refuse(request, timeout):
        raise OSError('the network is unreachable')

    monkeypatch.setattr('urllib.request.urlopen', refuse)
    return manual


def write(path, rows):
    """Rows as the suffix says; `.json` as OpenAI has it, one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.arrow':
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == '.parquet':
        files.write_rows(path, rows)
    else:
        data = ''.join(json.dumps(row) + '\n' for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def cache(folder, name, splits):
    """What `datasets.load_dataset` leaves behind: `name-train.arrow` and so on, with a description."""
    for split, rows in splits.items():
        write(folder / f'{name}-{split}.arrow', rows)
    info = {'splits': {split: {'name': split, 'num_examples': len(rows)} for split, rows in splits.items()}}
    (folder / 'dataset_info.json').write_text(json.dumps(info), encoding='utf-8')


@contextlib.contextmanager
def served(folder, monkeypatch, cut=0):
    """The address of a server of `folder`; it breaks off `cut` bytes before the end of each file."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile):
            data = source.read()
            outputfile.write(data[: len(data) - cut])

        def log_message(self, *_):
            pass

    monkeypatch.setattr('urllib.request.urlopen', NETWORK)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
