"""Count how many rooms of the source tree a path of calls enters.

A room is a folder of `consumers/` or of `detector/`. A file at the root of `consumers/` is a room of its own; the files at the
root of `detector/` are one room. From an entry function the script follows the calls that it can resolve without running the
code: depth first, in source order, three calls deep, each function once. It prints how many files and rooms the path enters,
in order (two neighbours are never the same), and how many different rooms. A reader of the code makes the same journey, which
is why fewer is better.

    python docs/rooms.py                       the paths of today's tree
    python docs/rooms.py --revision 3b3b06f    the same paths in an older commit
    python docs/rooms.py --verbose             each step of the paths too

Limits: the trace is a skeleton. It resolves names, methods of `self`, methods of annotated values, and constructors with code
of their own. It stops where the callee is chosen at run time. It does not count the return to a caller or the making of a
plain value.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("detector", "consumers")

PATHS: dict[str, tuple[str, ...]] = {
    "detect: a touched client becomes a row and an alert": (
        "consumers.detect.step:Detect.step",
        "consumers.decisions.outcomes:Detect.step",
    ),
    "service start: settings become running processes": (
        "consumers.wiring.processes:run_all",
        "consumers.wiring.service:run_all",
        "consumers.commands.serving:run_all",
    ),
}
"""What is traced → the places of its entry function, newest first; the first that exists is taken."""

DEEP = 3
"""How many calls below the entry a path is followed. Deeper, every path ends in the same helpers."""

RUNNING = frozenset(
    {
        "consumers.ingest",
        "consumers.ingest.loop",
        "consumers.detect",
        "consumers.detect.loop",
        "consumers.serve",
        "consumers.http.server",
    }
)
"""Modules whose `run` is the loop of a process: what happens there is no longer its start."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Class:
    """A class with its methods and what is known of the types of its attributes."""

    module: str
    node: ast.ClassDef
    methods: dict[str, Function] = field(default_factory=dict)
    attributes: dict[str, ast.expr] = field(default_factory=dict)


@dataclass
class Module:
    """A module's names: functions and classes defined in it, and imported names → dotted targets."""

    name: str
    tree: ast.Module
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)


def sources(revision: str | None) -> dict[str, str]:
    """Module name → source text, of the working tree or of a commit."""
    if revision is None:
        files = {
            str(p.relative_to(ROOT)): p.read_text() for package in PACKAGES for p in (ROOT / package).rglob("*.py")
        }
    else:
        command = ["git", "-C", str(ROOT), "archive", revision, *PACKAGES]
        packed = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 — git, with the caller's revision
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            files = {
                member.name: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
                for member in archive.getmembers()
                if member.isfile() and member.name.endswith(".py")
            }
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in sorted(files.items())
    }


def imports_of(tree: ast.AST) -> dict[str, str]:
    """Names that import statements bind, in functions and under TYPE_CHECKING too → what they name."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            bound.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        elif isinstance(node, ast.Import):
            bound.update({a.asname: a.name for a in node.names if a.asname})
    return bound


def class_of(module: str, node: ast.ClassDef) -> Class:
    """A class with its methods; attribute types from annotations and from `__init__`."""
    made = Class(module, node)
    for item in node.body:
        if isinstance(item, Function):
            made.methods[item.name] = item
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            made.attributes[item.target.id] = item.annotation
    for method in made.methods.values():
        parameters = {a.arg: a.annotation for a in (*method.args.args, *method.args.kwonlyargs) if a.annotation}
        for inner in ast.walk(method):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Attribute):
                made.attributes.setdefault(inner.target.attr, inner.annotation)
            elif isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Attribute):
                value = inner.value
                if isinstance(value, ast.Name) and value.id in parameters:
                    made.attributes.setdefault(inner.targets[0].attr, parameters[value.id])
                elif isinstance(value, ast.Call):
                    made.attributes.setdefault(inner.targets[0].attr, value.func)
    return made


class Tree:
    """All modules of one revision, and the resolution of names in them."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.modules: dict[str, Module] = {}
        for name, text in texts.items():
            tree = ast.parse(text)
            module = Module(name, tree, imports=imports_of(tree))
            for statement in tree.body:
                if isinstance(statement, Function):
                    module.functions[statement.name] = statement
                elif isinstance(statement, ast.ClassDef):
                    module.classes[statement.name] = class_of(name, statement)
            self.modules[name] = module

    def named(self, module: Module, name: str) -> Module | Class | tuple[Module, Function] | None:
        """What a bare name means in a module."""
        if name in module.functions:
            return module, module.functions[name]
        if name in module.classes:
            return module.classes[name]
        return self.dotted(module.imports[name]) if name in module.imports else None

    def dotted(self, target: str) -> Module | Class | tuple[Module, Function] | None:
        """What a dotted name means; names that a package passes on are followed to their definition."""
        if target in self.modules:
            return self.modules[target]
        owner, _, name = target.rpartition(".")
        return self.named(self.modules[owner], name) if owner in self.modules else None

    def type_of(self, module: Module, annotation: ast.expr | None) -> Class | None:
        """The first class of ours that an annotation names."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        for node in ast.walk(annotation) if annotation is not None else ():
            meant = self.named(module, node.id) if isinstance(node, ast.Name) else None
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = self.named(module, node.value.id)
                meant = self.named(owner, node.attr) if isinstance(owner, Module) else meant
            if isinstance(meant, Class):
                return meant
        return None

    def method(self, owner: Class, name: str) -> tuple[Class, Function] | None:
        """A method by name, in the class or in its bases of ours."""
        if name in owner.methods:
            return owner, owner.methods[name]
        for base in owner.node.bases:
            parent = self.type_of(self.modules[owner.module], base)
            if parent is not None and (inherited := self.method(parent, name)):
                return inherited
        return None


@dataclass
class Trace:
    """One walk: the files entered, in order."""

    tree: Tree
    stays: list[str] = field(default_factory=list)
    entered: set[int] = field(default_factory=set)
    depth: int = 0

    def follow(self, module: Module, owner: Class | None, function: Function) -> None:
        """Enter a function once and follow its calls in source order. Nested functions and lambdas belong to it."""
        if id(function) in self.entered or self.depth > DEEP or (function.name == "run" and module.name in RUNNING):
            return
        self.entered.add(id(function))
        self.depth += 1
        self._walk(module, owner, function)
        self.depth -= 1

    def _walk(self, module: Module, owner: Class | None, function: Function) -> None:
        if not self.stays or self.stays[-1] != module.name:
            self.stays.append(module.name)
        known: dict[str, Class] = {}
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
            if (meant := self.tree.type_of(module, argument.annotation)) is not None:
                known[argument.arg] = meant
        for node in in_order(function.body):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.comprehension | ast.withitem):
                self._note_types(module, owner, known, node)
            if isinstance(node, ast.Call):
                self._call(module, owner, known, node.func)

    def _note_types(self, module: Module, owner: Class | None, known: dict[str, Class], node: ast.AST) -> None:
        """Remember the class of a local name where the text tells it."""
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            meant = self.tree.type_of(module, node.annotation)
            if meant is not None:
                known[node.target.id] = meant
            return
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else getattr(node, "target", getattr(node, "optional_vars", None))
        )
        value = getattr(node, "value", None) or getattr(node, "iter", None) or getattr(node, "context_expr", None)
        meant = self.class_of_value(module, owner, known, value)
        if isinstance(target, ast.Name) and meant is not None:
            known[target.id] = meant

    def class_of_value(
        self, module: Module, owner: Class | None, known: dict[str, Class], value: ast.AST | None
    ) -> Class | None:
        """The class of an expression: a known name, `self`, an attribute, a constructor or an annotated return."""
        if isinstance(value, ast.Name):
            return owner if value.id == "self" else known.get(value.id)
        if isinstance(value, ast.Attribute):
            holder = self.class_of_value(module, owner, known, value.value)
            if holder is not None and value.attr in holder.attributes:
                return self.tree.type_of(self.tree.modules[holder.module], holder.attributes[value.attr])
            return None
        if isinstance(value, ast.Call):
            callee = self.callee(module, owner, known, value.func)
            if isinstance(callee, Class):
                return callee
            if callee is not None:
                where, _, function = callee
                return self.tree.type_of(where, function.returns)
        return None

    def callee(
        self, module: Module, owner: Class | None, known: dict[str, Class], function: ast.expr
    ) -> Class | tuple[Module, Class | None, Function] | None:
        """The class or function that an expression names, if the text tells it."""
        if isinstance(function, ast.Name):
            meant = self.tree.named(module, function.id)
        elif isinstance(function, ast.Attribute):
            if isinstance(function.value, ast.Name) and function.value.id not in known:
                holder = self.tree.named(module, function.value.id)
                if isinstance(holder, Module):
                    meant = self.tree.named(holder, function.attr)
                    return (
                        meant
                        if isinstance(meant, Class)
                        else (*meant[:1], None, meant[1])
                        if isinstance(meant, tuple)
                        else None
                    )
                if isinstance(holder, Class) and (bound := self.tree.method(holder, function.attr)):
                    return self.tree.modules[bound[0].module], bound[0], bound[1]
            instance = self.class_of_value(module, owner, known, function.value)
            if instance is not None and (bound := self.tree.method(instance, function.attr)):
                return self.tree.modules[bound[0].module], bound[0], bound[1]
            return None
        else:
            return None
        if isinstance(meant, Class):
            return meant
        return (meant[0], None, meant[1]) if isinstance(meant, tuple) else None

    def _call(self, module: Module, owner: Class | None, known: dict[str, Class], function: ast.expr) -> None:
        callee = self.callee(module, owner, known, function)
        if isinstance(callee, Class):
            where = self.tree.modules[callee.module]
            for name in ("__init__", "__post_init__"):
                if (method := self.tree.method(callee, name)) is not None:
                    self.follow(
                        where if method[0] is callee else self.tree.modules[method[0].module], method[0], method[1]
                    )
        elif callee is not None:
            self.follow(*callee)


def in_order(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes in evaluation order as far as the text tells: children before the call that takes them."""
    for statement in body:
        yield from _post(statement)


def _post(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        yield from _post(node.value)
        yield node
        return
    if isinstance(node, ast.For | ast.AsyncFor):
        yield from _post(node.iter)
        yield node
        for statement in (*node.body, *node.orelse):
            yield from _post(statement)
        return
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        for generator in node.generators:
            yield from _post(generator.iter)
            yield generator
            for condition in generator.ifs:
                yield from _post(condition)
        parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        for part in parts:
            yield from _post(part)
        return
    for child in ast.iter_child_nodes(node):
        yield from _post(child)
    yield node


def room_of(module: str) -> str:
    """The room that a module lies in: its folder; a file at the root of `consumers` is its own room."""
    parts = module.split(".")
    if parts[0] == "detector":
        return ".".join(parts[:2]) if len(parts) > 2 else "detector"
    return ".".join(parts[:2])


def runs(names: list[str]) -> list[str]:
    """The list without neighbours that are the same."""
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def trace(tree: Tree, entries: tuple[str, ...]) -> list[str]:
    """The modules entered, in order, from the first entry that exists."""
    for entry in entries:
        module_name, _, path = entry.partition(":")
        module = tree.modules.get(module_name)
        owner, _, name = path.rpartition(".")
        if module is None:
            continue
        if owner and owner in module.classes:
            walk = Trace(tree)
            walk.follow(module, module.classes[owner], module.classes[owner].methods[name])
            return walk.stays
        if name in module.functions:
            walk = Trace(tree)
            walk.follow(module, None, module.functions[name])
            return walk.stays
    raise SystemExit(f"rooms: no entry of {entries} exists")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the rooms that two paths of calls cross.")
    parser.add_argument("--revision", help="a commit; default: the working tree")
    parser.add_argument("--verbose", action="store_true", help="print the paths too")
    options = parser.parse_args()
    tree = Tree(sources(options.revision))
    for what, entries in PATHS.items():
        stays = trace(tree, entries)
        rooms = runs([room_of(module) for module in stays])
        sys.stdout.write(
            f"{what}: {len(stays)} files entered, {len(rooms)} rooms entered, {len(set(rooms))} different rooms\n"
        )
        if options.verbose:
            sys.stdout.write("  " + " > ".join(stays) + "\n  " + " > ".join(rooms) + "\n")


if __name__ == "__main__":
    main()
