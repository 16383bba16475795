"""What stands in for packages that are not installed here."""


def evaluator_package(tmp_path, monkeypatch, source):
    """Return a folder with a package of the official evaluator's interface, beside an OpenCV that has a version and no more."""
    package = tmp_path / "clone" / "vbvr_bench" / "evaluators"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(source)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "cv2.py").write_text("__version__ = '4.14.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    return tmp_path / "clone"
