"""Type stubs in which the methods that `@patch` adds stand in their classes: python .github/scripts/typed_view.py OUT

A checker of types does not run decorators, so it cannot see what `patch` adds to a class. OUT gets a .pyi for each module
of the library, with every method inside its class, whichever module it was written in."""
import ast, sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]/'genrec_nb'


def patched(node) -> dict | None:
    "The options of `@patch` if a function has it"
    for d in getattr(node, 'decorator_list', []):
        if isinstance(d, ast.Name) and d.id == 'patch': return {}
        if isinstance(d, ast.Call) and getattr(d.func, 'id', '') == 'patch': return {k.arg: k.value.value for k in d.keywords}


def method(f: ast.FunctionDef, as_prop=False, cached=False, cls_method=False) -> ast.FunctionDef:
    "The same function as a method of its class"
    first = (f.args.posonlyargs + f.args.args)[0]
    first.annotation = None
    names = ['property'] if as_prop or cached else ['classmethod'] if cls_method else []
    f.decorator_list = [ast.Name(n) for n in names]
    return f


def stubs(package: Path = PACKAGE) -> dict[str, str]: # relative path without suffix -> text
    "The stubs of all modules"
    files = {p.relative_to(package).with_suffix('').as_posix(): ast.parse(p.read_text()) for p in sorted(package.rglob('*.py')) if p.stem != '_modidx'}
    classes = {n.name: (name, n) for name, tree in files.items() for n in tree.body if isinstance(n, ast.ClassDef)}
    imports = {name: [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))] for name, tree in files.items()}
    for name, tree in files.items():
        for f in [n for n in tree.body if isinstance(n, ast.FunctionDef)]:
            options = patched(f)
            if options is None: continue
            home, cls = classes[(f.args.posonlyargs + f.args.args)[0].annotation.id]
            tree.body.remove(f)
            cls.body.append(method(f, **options))
            if home == name: continue
            own = [n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
            more = [ast.ImportFrom(f'genrec_nb.{name.replace("/", ".")}', [ast.alias(o) for o in own], 0)] if own else []
            others = [n for n in imports[name] if (getattr(n, 'module', None) or '').removeprefix('genrec_nb.').replace('.', '/') != home] # not its own names
            files[home].body[1:1] = others + more
    for tree in files.values():
        for f in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and any(isinstance(s, ast.Return) for s in n.body)]:
            if not any(isinstance(s, ast.Yield) for s in ast.walk(f)) and f.returns is not None: f.body = [ast.Expr(ast.Constant(...))]
    return {name: ast.unparse(ast.fix_missing_locations(tree)) for name, tree in files.items()}


def write_stubs(folder: Path) -> None:
    "One .pyi for each module"
    for name, text in stubs().items():
        path = Path(folder)/'genrec_nb'/f'{name}.pyi'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == '__main__': write_stubs(Path(sys.argv[1]))
