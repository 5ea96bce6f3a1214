"""The page in headless Chromium: what a person sees and presses, with real uploads, over a service whose pace is known."""

import io
import shutil

import numpy as np
import pytest
import serving_world as world
from PIL import Image

api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)")]
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
NASTY = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def server():
    with world.serving(world.Service(pace=0.01)) as running:
        yield running


@pytest.fixture(params=[(1280, 820), (390, 844)], ids=["desktop", "phone"])
def page(browser, server, request):
    yield from opened(browser, server, *request.param)


@pytest.fixture
def desktop(browser, server):
    yield from opened(browser, server, 1280, 820)


def opened(browser, server, width, height):
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    page = context.new_page()
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("dialog", lambda d: wrong.append("a dialog") or d.dismiss())
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("#examples button")
    yield page
    context.close()
    assert not [w for w in wrong if "status of 4" not in w]


def say(page, text: str, to: str) -> None:
    page.select_option("#target", to)
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#send:visible")


def until(page, expression: str) -> None:
    """Waits for a JavaScript expression; Playwright's own way evaluates strings in the page, which its policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def jpeg(width: int = 1600, height: int = 900) -> dict:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(out, "JPEG")
    return {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": out.getvalue()}


def test_a_conversation_in_every_modality(page, server):
    for to in ("text", "image", "speech", "music", "any"):
        say(page, f"something in {to}", to)
    turns = page.locator(".turn.assistant")
    assert turns.count() == 5
    assert turns.nth(0).locator("p").inner_text() == server.service.written
    assert turns.nth(1).locator("img").evaluate("i => i.complete && i.naturalWidth") == 16
    assert page.locator(".turn.assistant .player").count() == 2
    # Nothing is wider than the page, at any width.
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate("[...document.querySelectorAll('button, select')].every(b => b.offsetParent === null || "
                         "b.getAttribute('aria-label') || b.textContent.trim() || b.labels?.length)")  # fmt: skip
    # What was made goes back as ids, not as files.
    assert len(server.service.seen[-1].prompt) > 60
    assert [tuple(r.plan) if r.plan != "any" else "any" for r in server.service.seen] == [
        ("text",), ("image",), ("speech",), ("music",), "any"
    ]  # fmt: skip


def test_uploads_drops_and_recordings(page, server):
    page.set_input_files(
        "#files", [jpeg(), {"name": "s.wav", "mimeType": "audio/wav", "buffer": world.wav(9.0, rate=44_100)}]
    )
    page.wait_for_selector("#attached .player")
    assert "the first 6 seconds are used" in page.inner_text("#notice")
    page.click("#record")
    page.wait_for_timeout(900)
    page.click("#record")
    page.wait_for_selector("#attached .player >> nth=1")
    page.evaluate("""() => {
        const canvas = document.createElement("canvas"); canvas.width = canvas.height = 40;
        return new Promise(done => canvas.toBlob(blob => {
            const data = new DataTransfer(); data.items.add(new File([blob], "drop.png", {type: "image/png"}));
            window.dispatchEvent(new DragEvent("dragenter", {dataTransfer: data}));
            if (document.getElementById("drop").hidden) throw new Error("nothing shows where to drop");
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true})); done();
        }));
    }""")
    page.wait_for_selector("#attached img >> nth=1")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.select_option("#attached select >> nth=0", "music")
    page.click("#attached .remove >> nth=3")  # the drop again
    say(page, "what is this", "text")
    vocabulary, prompt = server.api.reader.pipeline.formatter.vocabulary, server.service.seen[-1].prompt
    order = [b.modality for i in prompt for b in vocabulary.blocks if b.begin == i]
    assert order == ["image", "music", "speech"]
    begin = int(np.flatnonzero(prompt == vocabulary.block("image").begin)[0])
    assert vocabulary.decode_codes("image", prompt[begin + 1 : begin + 5]).tolist() == [200 // 16] * 4
    page.set_input_files("#files", [{"name": "x.txt", "mimeType": "text/plain", "buffer": b"no medium"}])
    page.wait_for_selector("#notice:visible")
    assert page.inner_text("#notice") == "x.txt is neither a picture nor a sound that this browser can read."


def test_text_streams_stops_and_is_made_again(desktop, server):
    page, service = desktop, server.service
    service.pace, service.written = 0.05, "one two three four five six seven eight nine ten " * 8
    page.select_option("#target", "text")
    page.fill("#text", "count")
    page.press("#text", "Enter")
    until(page, "document.querySelector('.assistant p')?.textContent.length > 20")
    first = page.inner_text(".assistant p")
    assert len(first) < len(service.written) / 2 and page.is_visible("#stop")
    page.press("body", "Escape")
    page.wait_for_selector("#send:visible")
    assert server.idle()
    assert service.written.startswith(page.inner_text(".assistant p").strip()[:20])
    service.pace = 0.0
    page.click("text=Regenerate")
    page.wait_for_selector("text=Copy text")
    assert page.locator(".turn").count() == 2 and page.inner_text(".assistant p").strip() == service.written.strip()
    assert service.seen[0].seed != service.seen[1].seed
    page.click("text=Edit")
    assert page.locator(".turn").count() == 0 and page.input_value("#text") == "count"
    page.fill("#text", "two\nlines")
    page.press("#text", "Shift+Enter")
    assert page.input_value("#text").count("\n") == 2
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"


def test_speech_can_be_played_before_it_is_whole(desktop, server):
    page, service = desktop, server.service
    service.pace, service.codes = 0.3, 150
    page.select_option("#target", "speech")
    page.select_option("#voice", "ada")
    page.fill("#text", "speak")
    page.press("#text", "Enter")
    button = page.locator(".assistant .play")
    button.wait_for()
    until(page, "!document.querySelector('.assistant .play').disabled")
    assert page.is_visible("#stop") and "…" in page.inner_text(".assistant .time")  # more is to come
    button.click()
    until(page, "parseFloat(document.querySelector('.assistant .time').textContent) > 0.3")
    assert page.is_visible("#stop")
    page.wait_for_selector("#send:visible", timeout=30_000)
    until(page, "document.querySelector('.assistant .time').textContent === '6.0 / 6.0 s'")
    page.locator(".assistant canvas").press("Home")
    assert page.inner_text(".assistant .time") == "0.0 / 6.0 s"
    ink = page.locator(".assistant canvas").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 == 3 && v).length"
    )
    assert ink > 500
    with page.expect_download() as download:
        page.click(".assistant a[download]")
    assert world.soundfile.info(download.value.path()).duration == 6.0


def test_what_is_said_is_shown_as_text_and_never_run(desktop, server):
    server.service.written = NASTY
    say(desktop, NASTY, "text")
    assert desktop.inner_text(".user p") == desktop.inner_text(".assistant p") == NASTY
    assert desktop.locator("#turns img, #turns script").count() == 0


def test_refusals_are_sentences_and_the_conversation_goes_on(desktop, server):
    server.service.queue = 0
    say(desktop, "hello", "text")
    assert desktop.inner_text(".problem") == "The server has as much to do as it takes on; ask again later."
    server.service.queue = 64
    desktop.click("text=Regenerate")
    desktop.wait_for_selector("text=Copy text")
    assert desktop.locator(".problem").count() == 0
    server.service.fails = "error: it broke"
    say(desktop, "again", "text")
    assert "failed to answer" in desktop.inner_text(".problem")


def test_themes(desktop):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = desktop.evaluate(ground)
    desktop.emulate_media(color_scheme="dark")
    until(desktop, f"{ground} !== '{light}'")
    desktop.click("#theme")  # light, whatever the system says
    assert desktop.evaluate(ground) == light
    desktop.click("#theme")
    dark = desktop.evaluate(ground)
    desktop.emulate_media(color_scheme="light")
    desktop.reload()
    desktop.wait_for_selector("#examples button")
    assert desktop.evaluate(ground) == dark != light


def test_the_page_asks_for_the_token(browser):
    with world.serving(token="correct-horse-battery") as locked:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{locked.port}/")
        page.wait_for_selector("#ask-token[open]")
        page.fill("#token", "wrong")
        page.press("#token", "Enter")
        page.wait_for_selector("#ask-token[open]")
        page.fill("#token", "correct-horse-battery")
        page.press("#token", "Enter")
        page.wait_for_selector("#examples button")
        page.click("#examples button >> nth=0")
        page.wait_for_selector(".assistant img")
        context.close()
