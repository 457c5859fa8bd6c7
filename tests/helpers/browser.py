"""A real browser, to look at pages: what it lays out where, and screenshots."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
FRAME = """<!doctype html><meta name="color-scheme" content="{scheme}"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:1000px" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
const found = document.getElementById("found");
window.addEventListener("load", () => {{
  try {{ found.textContent = JSON.stringify(document.getElementById("page").contentWindow.measure()); }}
  catch (error) {{ found.textContent = JSON.stringify({{error: String(error)}}); }}
}});
</script>"""


def measured(page: str, script: str, folder: Path, *, width: int, dark: bool) -> dict:
    """What ``measure()`` of ``script`` returns inside the page, laid out ``width`` pixels wide. The script runs in a
    copy without the content security policy."""
    copy, removed = POLICY.subn("", page)
    assert removed == 1
    copy = copy.replace("</body>", f"<script>{script}</script></body>")
    file = folder / "frame.html"
    frame = FRAME.format(scheme="dark" if dark else "light", width=width, page=html.escape(copy, quote=True))
    file.write_text(frame, encoding="utf-8")
    printed = _run(["--dump-dom", "--window-size=1400,1100", file.as_uri()], dark=dark)
    return json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', printed, re.DOTALL)[1]))


def screenshot(page: Path, picture: Path, *, width: int, height: int, dark: bool) -> None:
    """A picture of the top of a page."""
    _run([f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri()], dark=dark)


def _run(arguments: list[str], *, dark: bool) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run([*command, scheme, *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
