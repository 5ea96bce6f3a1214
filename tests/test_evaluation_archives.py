"""What the published evaluations need: every task's files are told, and a damaged archive is found."""

import hashlib

from anygpt_jax.evaluation import archives
from anygpt_jax.evaluation.protocols import NAMES, by_name


def test_every_file_of_every_task_is_in_an_archive():
    told = {place for archive in archives.ARCHIVES for place in archive.goes}
    # MusicCaps' sound is on a video site, clip by clip, and its table behind a login: there is no archive to check.
    archived = [name for name in NAMES if not name.startswith("musiccaps")]
    needed = {f"{name}/{file}" for name in archived for file in by_name(name).files}
    assert {place.rstrip("/") for place in told} == needed


def test_an_archive_is_whole_damaged_absent_or_unchecked(tmp_path, capsys, monkeypatch):
    content = b"the whole archive"
    whole = archives.Archive("https://example.org/a.zip", hashlib.md5(content).hexdigest(), ("a/",))
    unknown = archives.Archive("https://example.org/b.zip", "", ("b/",))
    monkeypatch.setattr(archives, "ARCHIVES", (whole, unknown))
    assert archives.main([str(tmp_path)]) == 0 and capsys.readouterr().out.count("absent") == 2
    for path in ("a.zip", "b.zip"):
        (tmp_path / path).write_bytes(content)
    assert [archives.state_of(a, tmp_path) for a in archives.ARCHIVES] == ["whole", "unchecked"]
    (tmp_path / "a.zip").write_bytes(content[:-1])
    assert archives.main([str(tmp_path)]) == 1
    assert "damaged   https://example.org/a.zip" in capsys.readouterr().out
