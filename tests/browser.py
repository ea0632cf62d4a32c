"""A browser that tests drive: Chromium by its driver, in the W3C's protocol (a dozen of its commands)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

KEY = 'element-6066-11e4-a52e-4f735466cecf'  # of an element in answers, by the protocol
ENTER, BACKSPACE = '\ue007', '\ue003'


def missing() -> str:
    """Why there is no browser here; '' where there is one."""
    lacking = [name for name in ('chromium', 'chromedriver') if not shutil.which(name)]
    return f'no {" and no ".join(lacking)} on this machine' if lacking else ''


class Browser:
    """A window. Its profile, and what it downloads, lie in `folder`, so that another one of the same folder goes on."""

    def __init__(self, folder: Path, width: int = 1200, dark: bool = False) -> None:
        self.downloads = folder / 'downloads'
        self.downloads.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self._log = open(folder / 'driver.log', 'ab')  # noqa: SIM115
        self._driver = subprocess.Popen(
            [shutil.which('chromedriver'), f'--port={port}'], stdout=self._log, stderr=subprocess.STDOUT
        )
        self._url = f'http://127.0.0.1:{port}/session'
        options = {
            'args': [
                '--headless=new', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder / "profile"}',
                f'--window-size={width},900', '--disable-dev-shm-usage', *['--force-dark-mode'] * dark,
            ],
            'prefs': {'download.default_directory': str(self.downloads), 'download.prompt_for_download': False},
        }  # fmt: skip
        wanted = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'performance': 'ALL', 'browser': 'ALL'}}
        for _ in range(200):
            try:
                made = self._send('POST', '', {'capabilities': {'alwaysMatch': wanted}})
                break
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.05)
        self._url += f'/{made["sessionId"]}'

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send('DELETE', '')
        finally:
            self._driver.terminate()
            self._driver.wait()
            self._log.close()

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method != 'POST' else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {'Content-Type': 'application/json'}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)['value']
        except urllib.error.HTTPError as error:
            with error:
                told = json.load(error)['value']
            raise AssertionError(f'{path}: {told["error"]}: {told["message"][:300]}') from None

    def open(self, path: Path, anchor: str = '') -> None:
        self._send('POST', '/url', {'url': path.as_uri() + anchor})

    def reload(self) -> None:
        self._send('POST', '/refresh')

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns, `return …`."""
        return self._send('POST', '/execute/sync', {'script': script, 'args': list(arguments)})

    def find(self, css: str) -> str:
        return self._send('POST', '/element', {'using': 'css selector', 'value': css})[KEY]

    def click(self, css: str) -> None:
        self._send('POST', f'/element/{self.find(css)}/click')

    def write(self, css: str, text: str) -> None:
        self._send('POST', f'/element/{self.find(css)}/value', {'text': text})

    def press(self, *keys: str) -> None:
        """Keys, each down and up, to whatever has the focus."""
        actions = [{'type': way, 'value': key} for key in keys for way in ('keyDown', 'keyUp')]
        self._send('POST', '/actions', {'actions': [{'type': 'key', 'id': 'keys', 'actions': actions}]})

    def text(self, css: str) -> str:
        return self.run('return document.querySelector(arguments[0]).innerText', css)

    def texts(self, css: str) -> list[str]:
        return self.run('return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)', css)

    def choose(self, css: str, text: str) -> None:
        """The option of a list with this text, as who picks it does."""
        self.run(
            'const list = document.querySelector(arguments[0]);'
            'list.value = [...list.options].find(one => one.textContent === arguments[1]).value;'
            "for (const kind of ['input', 'change']) list.dispatchEvent(new Event(kind, {bubbles: true}));",
            css, text,
        )  # fmt: skip

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last look."""
        told = [json.loads(one['message'])['message'] for one in self._send('POST', '/se/log', {'type': 'performance'})]
        return [one['params']['request']['url'] for one in told if one['method'] == 'Network.requestWillBeSent']

    def errors(self) -> list[str]:
        """What the page complained of since the last look: errors of scripts, and what its policy refused."""
        return [one['message'] for one in self._send('POST', '/se/log', {'type': 'browser'})]

    def download(self, name: str) -> bytes:
        """A file that was saved, once it is whole."""
        path = self.downloads / name
        for _ in range(200):
            if path.exists() and not list(self.downloads.glob('*.crdownload')):
                return path.read_bytes()
            time.sleep(0.05)
        raise AssertionError(f'{name} was not saved; there is {[one.name for one in self.downloads.iterdir()]}')
