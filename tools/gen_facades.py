"""Writes the blocking and the asyncio client from the trio one: ``sandboxrt/sync`` and ``sandboxrt/aio``.

    python tools/gen_facades.py            write them
    python tools/gen_facades.py --check    say what is stale, and fail if anything is

Every public class of ``sandboxrt/client/*.py`` whose name begins with ``Async`` gets a façade of the same shape: the
same parameters, overloads and (adapted) docstrings, each method one call into ``sandboxrt.bridge``. docs/facades.md
has the rules. Writing needs ruff, which formats the result; checking needs nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "sandboxrt" / "client"
MEND = "run `python tools/gen_facades.py` and commit what it writes"

WORDS = (
    (r"\ban ``async (with|for)\b", r"a ``\1"),
    (r"\ban :class:`Async(?=[A-Z])", "a :class:`"),
    (r"\basync with await ", "with "),
    (r"\basync (with|for)\b", r"\1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\bAwait it for\b", "Wait for"),
    (r"\bawait again\b", "ask again"),
    (r"\bawait ", ""),
    (r"\baclose\b", "close"),
    (r"\bany number of tasks\b", "any number of threads"),
    (r"``get_(\w+)``", r"``\1``"),
    (r":meth:`get_(\w+)`", r"``\1``"),
    (r"\bOne task at a time\b", "One thread at a time"),
    (r"\bCancellation: ", "Interruption: "),
)
"""What the docstrings of the trio client say otherwise where calls block."""

LIFETIME = {
    "sync": "Works without ``with`` too: its first use opens it, ``close`` or the end of the program closes it.",
    "aio": "Works without ``async with`` too: its first use opens it, ``aclose`` or the end of the program closes it.",
}
SPECIAL = {"__init__", "__repr__", "__del__"}
"""Methods that the base classes in ``sandboxrt.bridge`` have."""
BLOCKING_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnsupportedError(Exception):
    """The client has something that this generator cannot translate; the message says where, and what would do."""


class Source:
    """A module of the trio client that has classes to translate."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        exported = {
            element.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for element in ast.walk(node.value)
            if isinstance(element, ast.Constant)
        }
        self.classes = [
            node
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and node.name in exported and node.name.startswith("Async")
        ]
        self.imports: dict[str, tuple[str, str | None]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                self.imports.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
            elif isinstance(node, ast.Import):
                self.imports.update({alias.asname or alias.name: (alias.name, None) for alias in node.names})
        for name in _assigned(self.tree):
            self.imports.setdefault(name, (f"sandboxrt.client.{self.name}", name))


def _assigned(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (target.id for target in targets if isinstance(target, ast.Name))


class Writer:
    """Writes the façades of one kind, ``sync`` or ``aio``."""

    def __init__(self, kind: str, sources: list[Source]) -> None:
        self.kind = kind
        self.sync = kind == "sync"
        self.sources = [source for source in sources if source.classes]
        self.home = {node.name: source.name for source in sources for node in source.classes}
        self.awaited = {
            node.name: _awaited(method)
            for source in sources
            for node in source.classes
            for method in node.body
            if isinstance(method, Function) and method.name == "__await__"
        }
        """The classes that are awaited into something else; where calls block, only what they become is needed."""
        self.base = "Blocking" if self.sync else "Asyncio"
        self.bridge = f"sandboxrt.bridge.{'blocking' if self.sync else 'loops'}"
        self.needed: set[str] = set()

    def files(self) -> dict[Path, str]:
        """The files' contents, unformatted."""
        folder = ROOT / "sandboxrt" / self.kind
        files = {folder / f"{source.name}.py": self._module(source) for source in self.sources}
        files[folder / "__init__.py"] = self._package()
        return files

    # -- modules -----------------------------------------------------------------------------------------------------

    def _module(self, source: Source) -> str:
        self.needed = set()
        classes = [
            self._class(source, node) for node in source.classes if not (self.sync and node.name in self.awaited)
        ]
        public = sorted(self._name(node.name) for node in source.classes if self._written(node.name))
        how = "blocking" if self.sync else "on asyncio"
        return "\n".join(
            [
                f'"""The classes of ``sandboxrt.client.{source.name}``, {how}.',
                "",
                f"Generated from sandboxrt/client/{source.name}.py by tools/gen_facades.py: do not edit.",
                '"""',
                "",
                "from __future__ import annotations",
                "",
                *self._imports(source),
                "",
                f"__all__ = {public!r}",
                "",
                *classes,
            ]
        )

    def _imports(self, source: Source) -> list[str]:
        facades = {self._name(known): home for known, home in self.home.items()}
        fixed = {
            "Portal": "sandboxrt.bridge.portal",
            "Deferred": "sandboxrt.client.deferred",
            f"{self.base}Client": self.bridge,
            f"{self.base}Facade": self.bridge,
        }
        lines: set[str] = set()
        for name in self.needed:
            if name in facades:
                if facades[name] != source.name:
                    lines.add(f"from sandboxrt.{self.kind}.{facades[name]} import {name}")
            elif name in fixed:
                lines.add(f"from {fixed[name]} import {name}")
            elif name.startswith("_trio_"):
                lines.add(f"from sandboxrt.client import {name.removeprefix('_trio_')} as {name}")
            elif name in source.imports:
                module, member = source.imports[name]
                alias = "" if member in (None, name) else f" as {name}"
                lines.add(f"import {module}" if member is None else f"from {module} import {member}{alias}")
        return sorted(lines)

    def _package(self) -> str:
        names = {
            self._name(node.name): source.name
            for source in self.sources
            for node in source.classes
            if self._written(node.name)
        }
        lines = [f"from sandboxrt.{self.kind}.{module} import {name}" for name, module in names.items()]
        if not self.sync:
            # One import line is all that a program changes to go from the trio client to this one.
            for module in ("errors", "models"):
                public = sorted(_exported(ROOT / "sandboxrt" / f"{module}.py"))
                lines += [f"from sandboxrt.{module} import {', '.join(public)}"]
                names |= dict.fromkeys(public, module)
        what = "The blocking client" if self.sync else "The asyncio client, with the errors and values that go with it"
        return "\n".join(
            [
                f'"""{what}.',
                "",
                "Generated from sandboxrt/client by tools/gen_facades.py: do not edit.",
                '"""',
                "",
                "from __future__ import annotations",
                "",
                *lines,
                "",
                "__all__ = [" + ", ".join(f'"{name}"' for name in sorted(names, key=_sort_key)) + "]",
                "",
            ]
        )

    # -- classes -----------------------------------------------------------------------------------------------------

    def _written(self, name: str) -> bool:
        return not (self.sync and name in self.awaited)

    def _name(self, name: str) -> str:
        return name.removeprefix("Async") if self.sync else name

    def _class(self, source: Source, node: ast.ClassDef) -> str:
        inner = f"_trio_{source.name}.{node.name}"
        constructor = next((m for m in node.body if isinstance(m, Function) and m.name == "__init__"), None)
        root = constructor is not None and _keywords_only(constructor)
        base = f"{self.base}{'Client' if root else 'Facade'}"
        self.needed |= {base, f"_trio_{source.name}"}
        lines = [f"class {self._name(node.name)}({base}[{inner}]):", *self._doc(node, "    ", root=root), ""]
        if root:
            assert constructor is not None
            lines += self._constructor(constructor, inner)
        left_out = {"__aenter__", "__aexit__", "aclose"} if root else set()
        if self.sync and any(isinstance(member, Function) and member.name == "aclose" for member in node.body):
            left_out.add("close")  # where calls block, it is aclose that has this name
        fetched = _fetched(node) if self.sync else {}
        for member in node.body:
            if not isinstance(member, Function) or member.name in left_out or member in fetched.values():
                continue
            if member.name in fetched:
                lines += self._property(member.name, fetched[member.name])
            else:
                lines += self._method(member, f"{source.name}.{node.name}.{member.name}")
        return "\n".join(lines) + "\n"

    def _constructor(self, node: Function, inner: str) -> list[str]:
        self.needed.add("Portal")
        return [
            f"    def __init__({self._parameters(node)}) -> None:",
            f"        self._inner = {inner}({self._arguments(node)})",
            "        self._portal = Portal(self._inner)",
            "",
        ]

    def _method(self, node: Function, where: str) -> list[str]:
        name = node.name
        if name in SPECIAL or (name.startswith("_") and not name.startswith("__")):
            return []
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators - {"overload", "property"}:
            raise UnsupportedError(f"{where}: only methods, properties and overloads can be translated")
        self.needed |= decorators & {"overload"}
        if name == "__await__":
            return [] if self.sync else self._await(node)
        body, blocks = self._body(node, where, is_property="property" in decorators)
        asynchronous = "async " if not self.sync and isinstance(node, ast.AsyncFunctionDef) else ""
        returns = self._annotation(self._returned(node, blocks))
        lines = [f"    @{decorator}" for decorator in sorted(decorators)]
        public = BLOCKING_NAMES.get(name, name) if self.sync else name
        signature = f"    {asynchronous}def {public}({self._parameters(node)}) -> {returns}:"
        if "overload" in decorators:
            return [*lines, f"{signature} ...", ""]
        return [*lines, signature, *self._doc(node, "        "), *(f"        {line}" for line in body), ""]

    def _property(self, name: str, getter: Function) -> list[str]:
        """A property that waits for what the trio client has ``get_...`` for."""
        assert getter.returns is not None
        return [
            "    @property",
            f"    def {name}(self) -> {self._annotation(getter.returns)}:",
            *self._doc(getter, "        "),
            f"        return {self._called(f'self._inner.{getter.name}()')}",
            "",
        ]

    def _await(self, node: Function) -> list[str]:
        become = self._annotation(_awaited(node))
        self.needed |= {"Any", "Generator"}
        return [
            f"    def __await__(self) -> Generator[Any, Any, {become}]:",
            "        return self._awaited().__await__()",
            "",
            f"    async def _awaited(self) -> {become}:",
            *(f"        {line}" for line in self._wrapped(_awaited(node), "await self._call(lambda: self._inner)", "")),
            "",
        ]

    def _returned(self, node: Function, blocks: bool) -> ast.expr:
        """The type of what the façade's method gives."""
        assert node.returns is not None
        if self.sync and blocks and isinstance(node, ast.FunctionDef):
            return self._result(node.returns) or node.returns
        return node.returns

    def _result(self, returns: ast.expr) -> ast.expr | None:
        """What awaiting a value of this type gives, if it is a type that is there to be awaited."""
        if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "Awaitable":
            return returns.slice
        return self.awaited.get(returns.id) if isinstance(returns, ast.Name) else None

    def _body(self, node: Function, where: str, *, is_property: bool) -> tuple[list[str], bool]:
        """The statements, and whether they wait for the trio thread."""
        assert node.returns is not None, where
        if node.name.startswith("__") and node.name != "__call__":
            return self._special(node, where), True
        inner = f"self._inner.{node.name}"
        if not is_property:
            inner += f"({self._arguments(node)})"
        if isinstance(node, ast.AsyncFunctionDef):
            return self._wrapped(node.returns, self._called(inner), where), True
        result = self._result(node.returns)
        if result is None or (not self.sync and isinstance(node.returns, ast.Name)):
            return self._wrapped(node.returns, inner, where), False
        if self.sync:
            return self._wrapped(result, self._called(inner), where), True
        if self._facades(result):
            raise UnsupportedError(f"{where}: an awaitable of a façade; make it a method")
        self.needed.add("Deferred")
        return [f"return Deferred(lambda: self._call(lambda: {inner}))"], False

    def _special(self, node: Function, where: str) -> list[str]:
        """The statements of a method that Python calls by itself."""
        assert node.returns is not None, where
        wait = "" if self.sync else "await "
        match node.name:
            case "__aenter__":
                return self._entered(node.returns)
            case "__aexit__":
                leave = f"{wait}self._exit({node.args.args[2].arg})"
                return [f"return {leave}" if ast.unparse(node.returns) == "bool" else leave]
            case "__anext__":
                return [f"return {wait}self._next(self._inner._take, self._inner._fill)"]
            case "__aiter__" if ast.unparse(node.returns) == "Self":
                return ["return self"]
            case "__aiter__":
                return self._wrapped(node.returns, "self._inner.__aiter__()", where)
        raise UnsupportedError(f"{where}: teach Writer._special in tools/gen_facades.py what it means")

    def _called(self, inner: str) -> str:
        work = inner.removesuffix("()") if inner.endswith("()") else f"lambda: {inner}"
        return f"{'' if self.sync else 'await '}self._call({work})"

    def _entered(self, returns: ast.expr) -> list[str]:
        enter = f"{'' if self.sync else 'await '}self._enter(self._inner)"
        if ast.unparse(returns) == "Self":
            return [enter, "return self"]
        return self._wrapped(returns, enter, "__aenter__")

    def _wrapped(self, returns: ast.expr, value: str, where: str) -> list[str]:
        """Statements that return ``value``, with objects of the trio client in it made objects of this one."""
        found = self._facades(returns)
        if not found:
            return [value] if ast.unparse(returns) == "None" else [f"return {value}"]
        self.needed |= {self._name(name) for name in found}
        if isinstance(returns, ast.Name):
            return [f"return {self._name(returns.id)}._of({value}, self._portal)"]
        if isinstance(returns, ast.Subscript) and ast.unparse(returns.value) == "list" and len(found) == 1:
            if isinstance(returns.slice, ast.Name):
                return [f"return [{self._name(found[0])}._of(each, self._portal) for each in {value}]"]
        elif isinstance(returns, ast.BinOp) and all(
            isinstance(part, ast.Name | ast.Constant) for part in _parts(returns)
        ):
            lines = [f"value = {value}"]
            for name in found:
                self.needed.add(f"_trio_{self.home[name]}")
                lines += [
                    f"if isinstance(value, _trio_{self.home[name]}.{name}):",
                    f"    return {self._name(name)}._of(value, self._portal)",
                ]
            return [*lines, "return value"]
        raise UnsupportedError(
            f"{where}: cannot translate {ast.unparse(returns)}; return a class, a list of one, or a union"
        )

    def _facades(self, annotation: ast.expr) -> list[str]:
        return [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name) and node.id in self.home]

    # -- signatures and words ----------------------------------------------------------------------------------------

    def _annotation(self, annotation: ast.expr) -> str:
        class Rename(ast.NodeTransformer):
            def visit_Name(_, node: ast.Name) -> ast.Name:  # noqa: N805
                name = self._name(node.id) if node.id in self.home else node.id
                self.needed.add(name)
                return ast.Name(id=name)

            def visit_Constant(_, node: ast.Constant) -> ast.Constant:  # noqa: N805
                return node

        return ast.unparse(Rename().visit(copy.deepcopy(annotation)))

    def _parameters(self, node: Function) -> str:
        arguments = copy.deepcopy(node.args)
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in every:
            if argument is not None and argument.annotation is not None:
                argument.annotation = ast.parse(self._annotation(argument.annotation), mode="eval").body
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self.needed |= {name.id for name in ast.walk(default) if isinstance(name, ast.Name)}
        return ast.unparse(arguments)

    def _arguments(self, node: Function) -> str:
        given = [self._given(argument) for argument in [*node.args.posonlyargs, *node.args.args][1:]]
        if node.args.vararg is not None:
            given.append(f"*{node.args.vararg.arg}")
        given += [f"{argument.arg}={self._given(argument)}" for argument in node.args.kwonlyargs]
        if node.args.kwarg is not None:
            given.append(f"**{node.args.kwarg.arg}")
        return ", ".join(given)

    def _given(self, argument: ast.arg) -> str:
        if argument.annotation is None or not self._facades(argument.annotation):
            return argument.arg
        if isinstance(argument.annotation, ast.Name):
            return f"{argument.arg}._inner"
        return f"None if {argument.arg} is None else {argument.arg}._inner"

    def _doc(self, node: ast.ClassDef | Function, indent: str, *, root: bool = False) -> list[str]:
        text = ast.get_docstring(node)
        if text is None:
            return []
        if self.sync:
            for pattern, replacement in WORDS:
                text = re.sub(pattern, replacement, text)
        if root:
            before, args, after = text.partition("\nArgs:\n")
            text = f"{before}\n{LIFETIME[self.kind]}\n{args}{after}"
        text = text.replace("\\", "\\\\")
        lines = f'"""{text}"""'.split("\n") if "\n" not in text else [*f'"""{text}'.split("\n"), '"""']
        return [f"{indent}{line}".rstrip() for line in lines]


def _awaited(method: Function) -> ast.expr:
    """``X`` of ``def __await__(self) -> Generator[Any, Any, X]``."""
    assert isinstance(method.returns, ast.Subscript) and isinstance(method.returns.slice, ast.Tuple)
    return method.returns.slice.elts[2]


def _fetched(node: ast.ClassDef) -> dict[str, Function]:
    """The properties of which the class has a coroutine too, ``get_`` and the name, that brings them up to date."""
    methods = {member.name: member for member in node.body if isinstance(member, Function)}
    return {
        name: methods[f"get_{name}"]
        for name, member in methods.items()
        if f"get_{name}" in methods and "property" in {ast.unparse(decorator) for decorator in member.decorator_list}
    }


def _keywords_only(constructor: Function) -> bool:
    """Whether users make objects of the class: those that they only get are constructed with positional arguments."""
    return len(constructor.args.args) == 1 and bool(constructor.args.kwonlyargs)


def _parts(union: ast.expr) -> list[ast.expr]:
    if isinstance(union, ast.BinOp):
        return [*_parts(union.left), *_parts(union.right)]
    return [union]


def _exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise UnsupportedError(f"{path} has no __all__")


def _sort_key(name: str) -> tuple[bool, str]:
    return (not name.isupper(), name)


def generate() -> dict[Path, str]:
    """Every generated file with its content, unformatted."""
    sources = [Source(path) for path in sorted(CLIENT.glob("*.py")) if path.name != "__init__.py"]
    return {path: text for kind in ("sync", "aio") for path, text in Writer(kind, sources).files().items()}


def stale(files: dict[Path, str]) -> list[str]:
    """What differs from what is committed, formatting aside."""
    found = []
    for path, text in files.items():
        if not path.exists():
            found.append(f"{path.relative_to(ROOT)} is missing")
        elif _meaning(path.read_text(encoding="utf-8")) != _meaning(text):
            found.append(f"{path.relative_to(ROOT)} is not what its source says now")
    return found + [f"{path.relative_to(ROOT)} has no source any more" for path in _committed() - files.keys()]


def _committed() -> set[Path]:
    return {path for kind in ("sync", "aio") for path in (ROOT / "sandboxrt" / kind).glob("*.py")}


def _meaning(text: str) -> tuple[list[str], list[str]]:
    """A module without its formatting: what it imports, in order of name, and the rest."""
    body = ast.parse(text).body
    imports = [
        f"{node.module} {alias.name} {alias.asname}"
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ] + [f"{alias.name} {alias.asname}" for node in body if isinstance(node, ast.Import) for alias in node.names]
    return sorted(imports), [ast.dump(node) for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]


def write(files: dict[Path, str]) -> None:
    """Write the files, formatted."""
    for path in _committed() - files.keys():
        path.unlink()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    names = [str(path) for path in files]
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "--fix", "--select", "I", *names], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", *names], check=True)


def main() -> int:
    """Write the façades, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    check = parser.parse_args().check
    try:
        files = generate()
    except UnsupportedError as error:
        print(f"error: sandboxrt/client/{error}", file=sys.stderr)
        return 2
    problems = stale(files)
    if not check:
        write(files)
        problems = stale(files)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(MEND if check else "error: what was written does not read back as what was meant", file=sys.stderr)
        return 1
    print(f"{len(files)} files are fresh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
