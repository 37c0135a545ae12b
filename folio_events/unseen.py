"""Calls in a project's own code that write rows of registered models and leave no event."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.db.models import Model
from django.db.models.options import Options

from folio_events.declarations import events

#: A line with this comment is meant so.
SILENT = re.compile(r"#\s*folio_events:\s*no event\b")


class UnseenWrite(NamedTuple):
    """A call that leaves no event."""

    path: Path
    line: int
    #: "_raw_delete()", "raw SQL" or "a historical model".
    door: str
    #: Labels of the models whose rows it writes; empty where that cannot be told.
    labels: tuple[str, ...]


def find_unseen_writes(paths: Iterable[Path]) -> Iterator[UnseenWrite]:
    """Search files of Python for calls that write rows of registered models unseen.

    What cannot be followed is not reported: a statement that is put together elsewhere, a
    historical model that is handed to another function. ``_raw_delete()`` is reported unless
    it is clearly about other models.
    """
    models = {found.model.__name__.lower() for found in events}
    words = {"_raw_delete", "session_replication_role", "db_table", *_tables(), *models}
    named = [word.encode() for word in words]
    for path in paths:
        source = path.read_bytes()
        # Parsing takes ten times as long as reading, and few files have any such call.
        if not _CALL.search(source):
            continue
        lowered = source.lower()
        if not any(word in lowered for word in named):
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        lines = source.decode(errors="replace").splitlines()
        for node, door, labels in _File(path, tree).writes():
            last = node.end_lineno or node.lineno
            if not any(SILENT.search(line) for line in lines[node.lineno - 1 : last]):
                yield UnseenWrite(path, node.lineno, door, labels)


def project_files(app_configs: Sequence[AppConfig] | None = None) -> list[Path]:
    """The files of a project's own apps, and of BASE_DIR where the settings have it.

    Without installed packages, virtual environments, hidden folders and tests.
    """
    base = getattr(django_settings, "BASE_DIR", None)
    roots = [Path(app.path) for app in app_configs or apps.get_app_configs()]
    roots = [root for root in roots if root != Path(__file__).parent]
    if base is not None and app_configs is None:
        roots.append(Path(base))
    return sorted({file.resolve() for root in roots for file in _files(root)})


_CALL = re.compile(rb"_raw_delete|\.execute|\.copy|RunSQL|get_model")
_INSTALLED = {"site-packages", "dist-packages"}
_SKIPPED = _INSTALLED | {"__pycache__", "node_modules", "tests", "test"}
_TEST = re.compile(r"conftest\.py|tests?\.py|test_.*|.*_tests?\.py")


def _files(root: Path) -> Iterator[Path]:
    library = sysconfig.get_path("stdlib")
    if _INSTALLED & set(root.parts) or root.is_relative_to(library) or root == Path(root.anchor):
        return
    for folder, inner, names in os.walk(root):
        if "pyvenv.cfg" in names:
            inner.clear()
            continue
        inner[:] = [name for name in inner if name not in _SKIPPED and name[0] != "."]
        for name in names:
            if name.endswith(".py") and not _TEST.fullmatch(name):
                yield Path(folder, name)


Found = tuple[ast.Call, str, tuple[str, ...]]
_WRITES = {"save", "delete", "create", "update", "get_or_create", "update_or_create"}
_WRITES |= {f"a{name}" for name in _WRITES} | {"bulk_create", "bulk_update", "_raw_delete"}
_WRITES |= {"abulk_create", "abulk_update"}
_STATEMENTS = {"execute", "executemany", "copy", "copy_expert", "RunSQL"}


class _File:
    """A file whose names are looked up where Django has loaded what they name."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.nodes = list(ast.walk(tree))
        self.package = _package_of(path)
        parts = [self.package] if path.stem == "__init__" else [self.package, path.stem]
        module = ".".join(filter(None, parts))
        self.globals = dict(vars(sys.modules[module])) if module in sys.modules else {}
        #: What names are bound to anywhere in the file, as it is written.
        self.bound: dict[str, list[ast.expr]] = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom):
                self._import(node)
        for name, value in _bindings(self.nodes):
            self.bound.setdefault(name, []).append(value)

    def _import(self, node: ast.ImportFrom) -> None:
        name = "." * node.level + (node.module or "")
        try:
            module = sys.modules.get(importlib.util.resolve_name(name, self.package))
        except ImportError:
            return
        for alias in node.names:
            if hasattr(module, alias.name):
                self.globals[alias.asname or alias.name] = getattr(module, alias.name)

    def writes(self) -> Iterator[Found]:
        yield from self._statements()
        yield from self._raw_deletes()
        yield from self._historical()

    def _named(self, node: ast.expr) -> Any:
        """What a dotted name stands for; None where nobody can tell."""
        if isinstance(node, ast.Name):
            return self.globals.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._named(node.value)
            # Not of other things: asking them may run somebody's code.
            if isinstance(owner, (ModuleType, type, Options)):
                return getattr(owner, node.attr, None)
        return None

    # Raw SQL

    def _statements(self) -> Iterator[Found]:
        for call in _calls(self.nodes, _STATEMENTS):
            texts = [text for argument in call.args[:1] for text in self._texts(argument)]
            labels = dict.fromkeys(label for text in texts for label in _written_by(text))
            if labels:
                yield call, "raw SQL", tuple(labels)

    def _texts(self, node: ast.expr) -> list[str]:
        if isinstance(node, (ast.List, ast.Tuple)):
            # What RunSQL takes: statements, or pairs of one with its parameters.
            return [text for part in node.elts for text in self._texts(part)]
        if isinstance(node, ast.Name) and node.id in self.bound:
            return [self._text(value) for value in self.bound[node.id]]
        return [self._text(node)]

    def _text(self, node: ast.expr) -> str:
        """The literal text of an expression, with a blank for what nobody can tell."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else " "
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self._text, node.values))
        if isinstance(node, ast.FormattedValue):
            return self._text(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._text(node.left) + self._text(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return self._text(node.left)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "format":
                return self._text(node.func.value)
            if node.func.attr == "quote_name" and len(node.args) == 1:
                return self._text(node.args[0])
        found = self._named(node)
        return found if isinstance(found, str) else " "

    # _raw_delete()

    def _raw_deletes(self) -> Iterator[Found]:
        for call in _calls(self.nodes, {"_raw_delete"}):
            model = self._model(call)
            if model is None:
                yield call, "_raw_delete()", ()
            elif labels := _labels(model):
                yield call, "_raw_delete()", labels

    def _model(self, node: ast.expr) -> type[Model] | None:
        """The model that a chain of calls begins with."""
        root = _root(node)
        if isinstance(root, ast.Name) and root.id not in self.globals:
            values = self.bound.get(root.id, [])
            node = values[0] if len(values) == 1 else node
        for part in _chain(node):
            found = self._named(part)
            if isinstance(found, type) and issubclass(found, Model):
                return found
        return None

    # Historical models

    def _historical(self) -> Iterator[Found]:
        calls = _calls(self.nodes, {"get_model"})
        registries = {root.id for call in calls if isinstance(root := _root(call), ast.Name)}
        seen: set[ast.Call] = set()
        for node in self.nodes if registries else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                # In a migration the registry is an argument; elsewhere it is Django's own, with
                # the real models.
                given = {argument.arg for argument in node.args.args} & registries
                for call, labels in _historical_writes(node, given) if given else ():
                    if call not in seen:
                        yield call, "a historical model", labels
                    seen.add(call)


def _historical_writes(
    function: ast.AST, registries: set[str]
) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    nodes = list(ast.walk(function))
    models: dict[str, tuple[str, ...]] = {}
    of_models: dict[str, tuple[str, ...]] = {}

    def labels_of(node: ast.expr) -> tuple[str, ...]:
        called = False
        for part in _chain(node):
            if isinstance(part, ast.Call) and _is_get_model(part, registries):
                return _historical_labels(part)
            if isinstance(part, ast.Name):
                return models.get(part.id) or of_models.get(part.id, ())
            # A member that is not called is a manager of a model; of a row it is a value.
            if isinstance(part, ast.Attribute) and not called and not is_model(part.value):
                return ()
            called = isinstance(part, ast.Call)
        return ()

    def is_model(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id in models) or (
            isinstance(node, ast.Call) and _is_get_model(node, registries)
        )

    for name, value in _bindings(nodes):
        if is_model(value) and (labels := labels_of(value)):
            models[name] = labels
    for _ in range(2):  # a name may be bound before what it is bound to has been met
        for name, value in _bindings(nodes):
            if name not in models and (labels := labels_of(value)):
                of_models[name] = labels
    for call in _calls(nodes, _WRITES):
        # dict.update() takes what QuerySet.update() does not.
        if not (call.args and _name(call) in ("update", "aupdate")) and (labels := labels_of(call)):
            yield call, labels


def _package_of(path: Path) -> str:
    parents = takewhile(lambda folder: (folder / "__init__.py").exists(), path.parents)
    return ".".join(reversed([folder.name for folder in parents]))


def _calls(nodes: Iterable[ast.AST], names: set[str]) -> Iterator[ast.Call]:
    for node in nodes:
        if isinstance(node, ast.Call) and _name(node) in names:
            yield node


def _name(call: ast.Call) -> str:
    called = call.func
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""


def _chain(node: ast.expr) -> Iterator[ast.expr]:
    """An expression and what it goes by: of ``a.b(c).d`` also ``a.b(c)``, ``a.b``, ``a``."""
    yield node
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
        yield node


def _bindings(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        targets = [getattr(node, "target", None), *getattr(node, "targets", ())]
        value = getattr(node, "iter", None) or getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                yield target.id, value


def _root(node: ast.expr) -> ast.expr:
    *_, root = _chain(node)
    return root


def _is_get_model(call: ast.Call, registries: set[str]) -> bool:
    called = call.func
    return (
        isinstance(called, ast.Attribute)
        and called.attr == "get_model"
        and isinstance(called.value, ast.Name)
        and called.value.id in registries
    )


def _historical_labels(call: ast.Call) -> tuple[str, ...]:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    names = [part.value for part in given if isinstance(part, ast.Constant)]
    try:
        return _labels(apps.get_model(".".join(map(str, names))))
    except (LookupError, ValueError):
        return ()


def _labels(model: type[Model]) -> tuple[str, ...]:
    """The registered models whose rows a write of a model changes unseen."""
    return tuple(
        found.model._meta.label for found in events.find_all(model) if found.capture == "signals"
    )


# A name of PostgreSQL and SQLite, with its schema: quoted or not.
_NAME = r"(?:[\w$]+|\"[^\"]+\")(?:\.(?:[\w$]+|\"[^\"]+\"))?"
_WRITTEN = re.compile(
    rf"""\b(?:
        (?:INSERT(?:\s+OR\s+\w+)?|REPLACE|MERGE)\s+INTO(?:\s+ONLY)?\s+(?P<insert>{_NAME})
        | UPDATE(?:\s+OR\s+\w+)?(?:\s+ONLY)?\s+(?P<update>{_NAME})
        | DELETE\s+FROM(?:\s+ONLY)?\s+(?P<delete>{_NAME})
        | COPY\s+(?P<copy>{_NAME})\s*(?:\([^)]*\)\s*)?FROM\b
        | TRUNCATE(?:\s+TABLE)?(?:\s+ONLY)?\s+(?P<truncate>{_NAME}(?:\s*,\s*{_NAME})*)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_NO_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_REPLICA = re.compile(r"session_replication_role\s*(?:=|TO)\s*'?replica\b", re.IGNORECASE)


def _written_by(statement: str) -> Iterator[str]:
    """Labels of the registered models whose rows a statement writes unseen."""
    if _REPLICA.search(statement):
        yield from (found.model._meta.label for found in events if found.capture == "trigger")
    for match in _WRITTEN.finditer(_NO_CODE.sub(" ", statement)):
        for name in re.findall(_NAME, match[match.lastgroup or 0]):
            for label, capture in _tables().get(_bare(name), ()):
                # A trigger sees all but this.
                if capture == "signals" or match.lastgroup == "truncate":
                    yield label


def _tables() -> Mapping[str, list[tuple[str, str]]]:
    """The tables that registered models stand in, with label and form of capture."""
    found: dict[str, list[tuple[str, str]]] = {}
    for declaration in events:
        for model in dict.fromkeys(field.model for field in declaration.captured_fields):
            entry = (declaration.model._meta.label, declaration.capture)
            found.setdefault(_bare(model._meta.db_table), []).append(entry)
    return found


def _bare(name: str) -> str:
    return name.rpartition(".")[2].strip('"').lower()
