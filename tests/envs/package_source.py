"""What a Python package defines, read from its source and never imported."""

import ast
from functools import cached_property
from pathlib import Path
from typing import NamedTuple


class Signature(NamedTuple):
    """What a function takes, `self` left out."""

    positional: list[str]
    required: set[str]
    keywords: set[str]
    """All that may be given by name."""
    any_positional: bool
    any_keyword: bool

    def fault(self, positional: int, keywords: tuple[str, ...]) -> str | None:
        """Why a call cannot be made so; None where it can."""
        if positional > len(self.positional) and not self.any_positional:
            return f"takes {len(self.positional)} arguments, not {positional}"
        if (unknown := set(keywords) - self.keywords) and not self.any_keyword:
            return f"knows no argument {min(unknown)}"
        given = set(self.positional[:positional]) | set(keywords)
        if lacking := self.required - given:
            return f"needs the argument {min(lacking)}"
        return None


class Packages:
    """Packages whose source lies below a folder: `folder/NAME`, or one folder further down.

    Args:
        folder: where their checkouts are.
        names: of the packages.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]):
        self.folders = {}
        for name in names:
            places = [folder / name, *sorted(folder.glob(f"*/{name}"))]
            there = [place for place in places if (place / "__init__.py").is_file()]
            if not there:
                raise FileNotFoundError(f"{folder} holds no package {name}")
            self.folders[name] = there[0]
        self._trees: dict[str, ast.Module] = {}

    def path(self, module: str) -> Path:
        """The file of a module."""
        package, *parts = module.split(".")
        place = self.folders[package].joinpath(*parts)
        return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")

    def tree(self, module: str) -> ast.Module:
        """The source of a module."""
        if module not in self._trees:
            self._trees[module] = ast.parse(self.path(module).read_text(encoding="utf-8"))
        return self._trees[module]

    def find(self, module: str, name: str) -> "Found":
        """A class or function that a module defines, or that it takes from another of the
        packages.

        Raises:
            KeyError: there is none.
        """
        for node in self.tree(module).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                return Found(self, module, node)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = {alias.asname or alias.name: alias.name for alias in node.names}
                if name in names and node.module.split(".")[0] in self.folders:
                    return self.find(node.module, names[name])
        raise KeyError(f"{module} defines no {name}")


class Found:
    """A class or function in the source."""

    def __init__(self, packages: Packages, module: str, node: ast.ClassDef | ast.FunctionDef):
        self.packages, self.module, self.node = packages, module, node

    @cached_property
    def lineage(self) -> list["Found"]:
        """The class, then what it inherits from that the packages define."""
        found = [self]
        for base in getattr(self.node, "bases", []):
            try:
                found += self.packages.find(self.module, ast.unparse(base)).lineage
            except KeyError:
                continue  # object, Exception, Enum
        return found

    def method(self, name: str) -> ast.FunctionDef | None:
        """Of the class or of what it inherits from."""
        for one in self.lineage:
            for node in one.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return node
        return None

    def attributes(self) -> set[str]:
        """What instances or the class have: methods, class variables, what `self` is given."""
        names = set()
        for one in self.lineage:
            for node in ast.walk(one.node):
                if isinstance(node, ast.FunctionDef):
                    names.add(node.name)
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                    names |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
            for node in one.node.body:
                for target in getattr(node, "targets", [getattr(node, "target", None)]):
                    if isinstance(target, ast.Name):
                        names.add(target.id)
        return names

    def signature(self, method: str | None = None) -> Signature:
        """Of a method, of the class's constructor, or of the function.

        Raises:
            KeyError: there is no such method.
        """
        if isinstance(self.node, ast.FunctionDef):
            return signature(self.node, bound=False)
        node = self.method(method or "__init__")
        if node is None:
            if method is None:
                return Signature([], set(), set(), False, False)
            raise KeyError(f"{self.node.name} of {self.module} has no method {method}")
        static = any(ast.unparse(one) == "staticmethod" for one in node.decorator_list)
        return signature(node, bound=not static)


def signature(node: ast.FunctionDef, bound: bool) -> Signature:
    """What a function takes; `bound`: without its first argument."""
    arguments = node.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
    optional = set(names[len(names) - len(arguments.defaults) :] if arguments.defaults else [])
    names = names[1:] if bound else names
    only = {one.arg for one in arguments.kwonlyargs}
    needed = {
        one.arg
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    }
    return Signature(
        names,
        {name for name in names if name not in optional} | needed,
        set(names) | only,
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )
