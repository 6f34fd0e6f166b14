"""Turns a blocking sample into the async one that its author would have written: the same calls, awaited."""

from __future__ import annotations

import ast

CALLS = frozenset(
    {
        "capture_snapshot",
        "create_sandbox",
        "create_snapshot",
        "delete",
        "delete_sandbox",
        "delete_snapshot",
        "get",
        "get_sandbox",
        "get_sandbox_status",
        "get_snapshot",
        "kill",
        "list_snapshots",
        "post",
        "read",
        "reconnect",
        "run",
        "send_input",
        "service",
        "sleep",
        "start",
        "start_sandbox",
        "stop",
        "stop_sandbox",
        "update_sandbox",
        "wait_for_sandbox",
        "write",
    }
)
"""Methods that are coroutines in the async clients."""


class _Awaiter(ast.NodeTransformer):
    def __init__(self, calls: frozenset[str]) -> None:
        self._calls = calls

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in self._calls:
            return ast.Await(value=node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "result" and isinstance(node.ctx, ast.Load):
            return ast.Await(value=node)
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        for item in node.items:
            # As the README's async samples write it: `async with await client.sandbox(...)`.
            item.context_expr = ast.Await(value=item.context_expr)
        return ast.AsyncWith(items=node.items, body=node.body)

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        return ast.AsyncFor(target=node.target, iter=node.iter, body=node.body, orelse=node.orelse)


def asynchronous(source: str, parameters: tuple[str, ...]) -> str:
    """The source of ``async def sample(parameters)`` whose body is ``source`` with every client call awaited.

    The names that the body assigns are returned, as ``exec`` would leave them behind.
    """
    tree = ast.parse(source)
    # Where a sample imports `time`, it sleeps as it says; elsewhere the test hands in what an author would use.
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    module = _Awaiter(CALLS - {"sleep"} if "time" in imported else CALLS).visit(tree)
    imports = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    body = [node for node in module.body if node not in imports]
    function = ast.AsyncFunctionDef(
        name="sample",
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(arg=name) for name in parameters], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=[*body, ast.Return(value=ast.Call(func=ast.Name(id="locals", ctx=ast.Load()), args=[], keywords=[]))],
        decorator_list=[],
        type_params=[],
    )
    return ast.unparse(ast.fix_missing_locations(ast.Module(body=[*imports, function], type_ignores=[])))
