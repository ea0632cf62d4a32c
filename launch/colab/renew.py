"""Makes anew what the notebook is kept with: the outputs of its cells, and the address behind its badge.

    python launch/colab/renew.py

Does what a reader would: clones the last commit, makes an environment, and runs the notebook as it stands here from its
first cell to its last, on whatever devices there are. That installs 1.3 GB of packages and takes about ten minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name('rlaif.ipynb')
ROOT = NOTEBOOK.parents[2]
BADGED = (NOTEBOOK, ROOT / 'docs/guide.md')
COLAB = 'https://colab.research.google.com/'


def code(book: Mapping[str, Any]) -> dict[str, str]:
    """The sources of a notebook's code cells, by their ids."""
    return {cell['id']: ''.join(cell['source']) for cell in book['cells'] if cell['cell_type'] == 'code'}


def digest(book: Mapping[str, Any]) -> str:
    """What outputs were made of. The notebook keeps it beside them, so that a cell which was edited since is found."""
    return hashlib.sha256(json.dumps(code(book)).encode()).hexdigest()


def address(repository: str) -> str:
    """Where the badge leads: Colab with the notebook of a repository on GitHub, or, for any other and none, Colab alone."""
    on_github = re.fullmatch(r'https://github\.com/([^/]+/[^/]+?)(\.git)?/?', repository)
    return f'{COLAB}github/{on_github[1]}/blob/main/{NOTEBOOK.relative_to(ROOT).as_posix()}' if on_github else COLAB


def clean(text: str) -> str:
    """What a terminal shows in the end: no colours, no line that was written over, of a stage's progress its last line."""
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text).replace('\r\n', '\n')
    text = re.sub(r'^.*\r', '', text, flags=re.MULTILINE)
    return re.sub(r'^(.+ )\d+(/\d+)  .*\n(?=\1\d+\2  )', '', text, flags=re.MULTILINE)


def keep(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Outputs as they are kept: stdout whole, pictures without the name of their class, nothing of stderr."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output['output_type'] == 'stream' and output['name'] == 'stdout':
            text = ''.join(output['text'])
            if kept and kept[-1]['output_type'] == 'stream':
                text = ''.join(kept.pop()['text']) + text
            kept.append({'name': 'stdout', 'output_type': 'stream', 'text': clean(text).splitlines(keepends=True)})
        elif 'data' in output:
            data = {kind: what for kind, what in output['data'].items() if kind != 'text/plain'}
            kept.append({**output, 'data': data or output['data'], 'metadata': {}})
    return kept


def execute(folder: Path) -> dict[str, Any]:
    """The notebook as it ran in `folder`, in a fresh environment and a fresh clone, whose places it does not name."""
    clone, programs = folder / 'rlaif', folder / 'env/bin'
    notebook = clone / NOTEBOOK.relative_to(ROOT)
    environment = {**os.environ, 'PYTHONPATH': '', 'PIP_QUIET': '3'}

    def run(*command: str | Path) -> None:
        subprocess.run(command, env=environment, check=True)

    venv.create(programs.parent, with_pip=True)
    run(programs / 'python', '-m', 'pip', 'install', 'nbclient', 'ipykernel')
    run('git', 'clone', '--quiet', ROOT, clone)
    shutil.copy(NOTEBOOK, notebook)
    run(programs / 'jupyter', 'execute', '--inplace', notebook)
    return json.loads(notebook.read_text(encoding='utf-8').replace(f'{programs}/', '').replace(str(clone), clone.name))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ran = execute(Path(folder).resolve())
    outputs = {cell['id']: keep(cell.get('outputs', [])) for cell in ran['cells']}
    book = json.loads(NOTEBOOK.read_text(encoding='utf-8'))  # somebody may have edited it meanwhile; the digest tells
    for number, name in enumerate(code(book), 1):
        cell = next(cell for cell in book['cells'] if cell['id'] == name)
        cell |= {'execution_count': number, 'outputs': outputs.get(name, [])}
    book['metadata']['outputs_of'] = digest(ran)
    NOTEBOOK.write_text(json.dumps(book, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')
    repository = re.search("^REPOSITORY = '(.*?)'", code(book)['settings'], re.MULTILINE)[1]
    for path in BADGED:
        text = path.read_text(encoding='utf-8')
        path.write_text(re.sub(rf'(?<=\[colab\]: ){COLAB}[^\s"\\]*', address(repository), text), encoding='utf-8')


if __name__ == '__main__':
    main()
