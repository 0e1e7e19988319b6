"""Build the documentation site from nbs/, without Quarto: nbdev's processors -> smalldocs -> _docs/.

    python .github/scripts/build_docs.py [--out _docs]

Works in a temporary copy, so the checkout is not touched and two builds do not meet; the finished site replaces the old
one at the end. It can be browsed offline, straight from the disk: KaTeX is bundled (fetched once by `npm pack` into
.cache/, checked against its sha256; or set KATEX_TARBALL to a copy of katex-0.16.11.tgz), themes load no fonts from
elsewhere, and the search index is a script, because a page opened from disk may not fetch JSON.
"""
import argparse, ast, functools, hashlib, html, importlib.util, inspect, io, json, os, re, shutil, subprocess, sys, tarfile, tempfile, traceback
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
KATEX = '0.16.11'                                                              # the version smalldocs links to
KATEX_CDN = f'https://cdn.jsdelivr.net/npm/katex@{KATEX}/dist/'
KATEX_SHA256 = '8c5494c5f7d8e8bf73ff3fe64d4bd09a340e4878b7eec9bbd9ef8d8f3e24193f'
SKIP = shutil.ignore_patterns('.*', '_proc', '_docs', '__pycache__', 'sidebar.yml')


class Unobtainable(Exception):
    "Something from outside that the build needs cannot be had; the message says what to do."


class Failed(Exception):
    "A step of the build went wrong; the message is what it said."


def step(who, command, env):
    "Run one step in a process of its own."
    r = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    if r.returncode: raise Failed(f'{who} failed (exit status {r.returncode})\n{r.stdout.strip()[-4000:]}')


def need(found, what):
    "Refuse to build a page that is silently wrong: `what` must still be in what smalldocs writes."
    if not found: raise RuntimeError(f'{what} is not where smalldocs 0.5.4 puts it: build_docs.py has to follow the new version')


# ---- KaTeX

def katex():
    "The files of KaTeX's npm package, {path in dist/: bytes}."
    tgz = Path(os.environ.get('KATEX_TARBALL') or ROOT/'.cache'/f'katex-{KATEX}.tgz')
    if not tgz.exists():
        if not shutil.which('npm'): raise Unobtainable(f'KaTeX {KATEX} is not at {tgz} and npm is not installed. Install npm, or set '
                                                       f'KATEX_TARBALL to a copy of katex-{KATEX}.tgz from the npm registry')
        with tempfile.TemporaryDirectory() as tmp:
            r = subprocess.run(['npm', 'pack', '--silent', f'katex@{KATEX}'], cwd=tmp, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180)
            got = list(Path(tmp).glob('katex-*.tgz'))
            if r.returncode or not got: raise Unobtainable(f'`npm pack katex@{KATEX}` failed: {(r.stderr or r.stdout).strip()[-300:]}')
            tgz.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(got[0], part := tgz.with_suffix(f'.{os.getpid()}.tmp'))
            os.replace(part, tgz)
    raw = tgz.read_bytes()
    if hashlib.sha256(raw).hexdigest() != KATEX_SHA256: raise Unobtainable(f'{tgz} is not katex-{KATEX}.tgz (sha256 differs). Delete it and build again')
    with tarfile.open(fileobj=io.BytesIO(raw)) as t:
        return {m.name.removeprefix('package/dist/'): t.extractfile(m).read() for m in t if m.isfile() and m.name.startswith('package/dist/')}


def bundle_katex(site, files):
    "Put KaTeX beside the pages and point them at it; woff2 only, which every browser of the last ten years reads."
    css = files['katex.min.css'].decode()
    css, n = re.subn(r',url\([^)]*\.(?:woff|ttf)\) ?format\("(?:woff|truetype)"\)', '', css)
    need(n, 'the list of fonts in katex.min.css')
    keep = {'katex.min.css': css.encode(), **{k: files[k] for k in ('katex.min.js', 'contrib/auto-render.min.js')},
            **{k: v for k, v in files.items() if k.startswith('fonts/') and k.endswith('.woff2')}}
    for name, data in keep.items():
        path = site/'site_libs'/'katex'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    loads = re.compile(rf'<link rel="stylesheet" href="{KATEX_CDN}[^>]*>|<script src="{KATEX_CDN}[^>]*></script>')
    for page in site.rglob('*.html'):
        up, text = '../'*(len(page.relative_to(site).parts)-1), page.read_text()
        if not re.search(r'\\\(|\\\[|\$\$', text): text = loads.sub('', text)      # two pages of three have no formula
        page.write_text(text.replace(KATEX_CDN, f'{up}site_libs/katex/'))


# ---- from notebooks to what smalldocs reads

def front(nb):
    "The front matter nbdev's processors put into a notebook's first cell."
    import yaml
    m = re.match(r'\s*---\n(.*?)\n---', ''.join(nb['cells'][0]['source']), re.S) if nb['cells'] else None
    return yaml.safe_load(m[1]) or {} if m else {}


def only_imports(source):
    "Is a cell nothing but imports?"
    try: body = ast.parse(source).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


# A class without an __init__ of its own is shown with that of its base, whose annotations may name what only its own module imports.
SIGNATURES = """import inspect
if not hasattr(inspect, 'strict_from_callable'):
    inspect.strict_from_callable = inspect.Signature.from_callable.__func__
    def _tolerant(cls, obj, *, eval_str=False, **how):
        try: return inspect.strict_from_callable(cls, obj, eval_str=eval_str, **how)
        except NameError: return inspect.strict_from_callable(cls, obj, eval_str=False, **how)
    inspect.Signature.from_callable = classmethod(_tolerant)"""


def prepare(nbs):
    """Three changes to each notebook before nbdev's processors see it.

    Exported cells show their code (nbdev's `exports`): a lesson that hides its code teaches nothing, and a page without its imports
    does not run; imports are folded. The module is imported first, so that a signature may name a class that the notebook defines
    further down. And the processors, which execute exported cells and any cell with an import, leave the latter alone: what it
    needs has not been run.
    """
    for f in nbs.rglob('*.ipynb'):
        nb = json.loads(f.read_text())
        for c in nb['cells']:
            src = ''.join(c['source'])
            if c['cell_type'] != 'code': continue
            hidden = re.match(r'#\|\s*(hide|echo: *false)', src)
            if not hidden and only_imports(src) and not re.match(r'#\|\s*export', src):
                body = '\n'.join(line for line in src.split('\n') if not re.match(r'#\|', line))
                c['source'] = f'#| eval: false\n{IMPORTS}{body}'
                continue
            if not re.match(r'#\|\s*(export|default_exp)', src) and re.search(r'\bimport\b', src) and 'show_doc(' not in src: c['source'] = '#| eval: false\n'+src
            if re.match(r'#\|\s*export\s*\n', src): c['source'] = re.sub(r'#\|\s*export', '#| exports', src, count=1)
        for i, c in enumerate(nb['cells']):
            m = re.match(r'#\|\s*default_exp\s+([\w.]+)', ''.join(c['source'])) if c['cell_type'] == 'code' else None
            if not m: continue
            nb['cells'].insert(i+1, dict(cell_type='code', id='import-all', metadata={}, outputs=[], execution_count=None,
                                         source=f'#| hide\n{SIGNATURES}\nfrom genrec_nb.{m[1]} import *'))
            break
        show_test_imports(nb)
        shown = [c for c in nb['cells'] if not re.search(r'^#\|\s*hide', ''.join(c['source']), re.M)]
        if shown and re.match(r'#\|\s*exports', ''.join(shown[-1]['source'])):      # nbdev looks for a cell behind it
            nb['cells'].append(dict(cell_type='markdown', id='the-end', metadata={}, source='&nbsp;'))
        f.write_text(json.dumps(nb))


def show_test_imports(nb):
    "The comparisons of `fastcore.test` that shown cells use are imported in a hidden cell: show that import, folded, above the first code."
    shown = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code' and not re.match(r'#\|\s*hide', ''.join(c['source']))]
    used = sorted({m for s in shown for m in re.findall(r'\b(test_(?:eq|ne|close|fail|stdout|is|warns))\(', s)} - {m for s in shown for m in re.findall(r'def (test_\w+)', s)})
    if not used: return
    at = next(i for i, c in enumerate(nb['cells']) if c['cell_type'] == 'code' and 'fastcore.test' in ''.join(c['source'])) + 1
    nb['cells'].insert(at, dict(cell_type='code', id='import-tests', metadata={}, outputs=[], execution_count=None,
                                source=f'#| eval: false\n{IMPORTS}from fastcore.test import {", ".join(used)}'))


def process(work):
    "Run nbdev's own processors (not the nbdev_proc_nbs command, which tries to install Quarto) and return their folder."
    from nbdev.config import get_config
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(work)
    cfg = get_config()
    assert cfg.config_path.resolve() == work.resolve(), cfg.config_path
    refresh_quarto_yml()
    prepare(work/'nbs')
    proc_nbs(work/'nbs', n_workers=0, force=True)                              # in this process, which has imported the library
    missing = {p.relative_to(work/'nbs') for p in (work/'nbs').rglob('*.ipynb')} - {p.relative_to(work/'_proc') for p in (work/'_proc').rglob('*.ipynb')}
    if missing: sys.exit(f"not processed (the error is above): {', '.join(map(str, sorted(missing)))}")
    return work/'_proc', cfg


IMPORTS = '#| code-fold: true\n#| code-summary: "Imports"\n'
FOLD = '#| code-fold: show\n#| code-summary: "Exported source"\n'


def heading_over_code(nb):
    """Set the heading of an exported name above its code, once.

    nbdev writes heading, signature and docstring, and its code apart; with the code on the page the signature would stand there twice.
    """
    cells = nb['cells']
    doc_of = lambda c: m[1] if c['cell_type'] == 'code' and (m := re.search(r'^show_doc\(([\w.]+)\)', ''.join(c['source']), re.M)) else None
    for code in [c for c in cells if c['cell_type'] == 'code' and ''.join(c['source']).startswith(FOLD)]:
        code['source'] = ''.join(code['source'])[len(FOLD):]
        if only_imports(code['source']):
            code['source'] = IMPORTS + code['source']
            continue
        names = [full_name(n) for n in ast.parse(code['source']).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        at = cells.index(code)
        docs = sorted((c for c in cells[max(0, at-6):at+6+len(names)] if doc_of(c) in names), key=lambda c: names.index(doc_of(c)))
        for c in docs:
            for o in c['outputs']:
                if md := ''.join(o.get('data', {}).get('text/markdown', '')): o['data']['text/markdown'] = heading(md, doc_of(c))
        for c in docs: cells.remove(c)
        at = cells.index(code)
        cells[at:at] = [c for c in docs if doc_of(c)[0] != '_']         # contents list public names


def one_fold(nb):
    "Folded imports in a row become one fold."
    kept = []
    for c in nb['cells']:
        head, fold, imports = ''.join(c['source']).partition(IMPORTS)
        before = ''.join(kept[-1]['source']) if kept else ''
        if c['cell_type'] == 'code' and fold and IMPORTS in before: kept[-1]['source'] = before.rstrip() + '\n' + imports
        else: kept.append(c)
    nb['cells'] = kept


def full_name(node):
    "The name of a definition; of a function that `patch` adds to a class, Class.name."
    deco = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    patched = any(isinstance(d, ast.Name) and d.id == 'patch' for d in deco) and node.args.args
    return f'{ast.unparse(node.args.args[0].annotation)}.{node.name}' if patched else node.name


def heading(md, name):
    "What nbdev shows of a name, down to its signature; a cached property, which it shows as an object, by its name."
    md = md.removeprefix('---\n\n').split('\n```python\n')[0]
    return f'### {name}' + ' {#' + name.lower() + '}\n' if 'object at 0x' in md else md


def pages_of_names(nbs):
    "{notebook: {public name that it defines or imports: its page, such as trie.html}}"
    page = lambda f: re.sub(r'^\d+[a-z]?_', '', f.relative_to(nbs).with_suffix('.html').name)
    trees, homes, public = {}, {}, {}
    for f in sorted(nbs.rglob('*.ipynb')):
        code = [''.join(c['source']) for c in json.loads(f.read_text())['cells'] if c['cell_type'] == 'code']
        trees[f] = [(t, bool(re.match(r'#\|\s*exports?\b', x))) for x in code if (t := parsed(x))]
        home = next((m[1] for x in code if (m := re.match(r'#\|\s*default_exp\s+([\w.]+)', x))), None)
        if home: homes[f'genrec_nb.{home}'] = page(f)
        own = [full_name(n) for t, exported in trees[f] if exported for n in t.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        public[f] = {n: page(f) for n in own if n[0] != '_' and '.' not in n}
    imported = {f: {a.asname or a.name: homes[n.module] for t, _ in trees[f] for n in ast.walk(t)
                    if isinstance(n, ast.ImportFrom) and n.module in homes for a in n.names} for f in trees}
    return {f.relative_to(nbs).as_posix(): imported[f] | public[f] for f in trees}, {m.split('.')[-1]: p for m, p in homes.items()}


def parsed(source):
    "The syntax tree of a cell; None where it is no plain Python."
    try: return ast.parse(source)
    except SyntaxError: return None


def link_names(text, names, here, lessons, depth):
    """Links of names in backticks: to this page if it defines the name, else to the page of the module that it is imported from, else none.

    nbdev would link a name to whichever module defines one of the same spelling. `*trie*`, a lesson named in italics, becomes a link, too.
    """
    up = '../'*depth
    def link(m):
        name, head = m[1], m[1].split('.')[0]
        if head not in names: return f'`{name}`'
        return f'[`{name}`]({"" if names[head] == here else up+names[head]}#{name.lower()})'
    def linked(piece):
        piece = re.sub(r'\[(`[^`\n]+`)\]\([^()\s]*\.html#[\w.-]*\)', r'\1', piece)
        piece = re.sub(r'(?<![\[`])`([A-Za-z_]\w*(?:\.\w+)*)`(?![\]`])', link, piece)
        return re.sub(r'(?<![*\w`])\*([a-z_]+)\*(?![*\w])', lambda m: f'[{m[1]}]({up}{lessons[m[1]]})' if m[1] in lessons else m[0], piece)
    return ''.join(p if p.startswith('```') else '\n'.join(line if re.match(r'#+ ', line) else linked(line) for line in p.split('\n'))
                   for p in re.split(r'(```.*?```)', text, flags=re.S))


SECTIONS = ['Foundations', 'Data and metrics', 'Identifiers', 'Tokens', 'Models', 'Decoding and training', 'Language models',
            'Significance and baselines', 'Use', 'Experiments']                # by the first digit of a notebook's number


def reference(work):
    "The API reference, a page a module, made by smalldocs from signatures and docments, in a folder beside the notebooks."
    import smalldocs.api as api
    with mock.patch('ast.parse', functools.cache(ast.parse)):                  # inspect parses a module anew for each of its classes
        api.build(api.Settings(work, ['genrec_nb'], out='reference', root=work))


def look_up_sources_once():
    "Have `inspect` read the source of an object once: nbdev and smalldocs ask for it up to five times, and each time it is tokenized."
    read, found = inspect.getsourcelines, {}
    def getsourcelines(obj):
        if id(obj) not in found: found[id(obj)] = obj, read(obj)               # the object is kept, and with it its id
        lines, number = found[id(obj)][1]
        return list(lines), number
    inspect.getsourcelines = getsourcelines


def prepare_pages(work):
    "Stage the notebooks and the reference, side by side: each in a process that has imported the library."
    import smalldocs.api as api
    look_up_sources_once()
    api.package_modules('genrec_nb')
    if not (child := os.fork()):                                               # notebooks, executed, patch classes of the library: not of this one
        try: reference(work); os._exit(0)
        except BaseException: traceback.print_exc(); os._exit(1)
    stage, cfg = process(work)
    if os.waitpid(child, 0)[1]: sys.exit('the API reference was not made (the error is above)')
    settle(stage, cfg.doc_host+cfg.doc_baseurl)


def render(folder):
    "smalldocs, with the color of a kind of token looked up once, and the sidebar's other pages written once a folder."
    from fastcore.xml import to_xml
    from smalldocs import cli, highlight, layout
    highlight.css_class = functools.cache(highlight.css_class)
    write, written = layout.Layout.side_item, {}
    def side_item(self, item, depth):
        if item.sep or item.section or item.page is self.page: return write(self, item, depth)
        key = self.page.out.parent, id(item)
        if key not in written: written[key] = layout.Safe(to_xml(write(self, item, depth), indent=False))
        return written[key]
    layout.Layout.side_item = side_item
    return cli.main(['render', '--quiet', '--strict', str(folder)])


def add_reference(stage, lessons):
    "Take the reference over; each name leads to its lesson. The pages, in the order of the lessons."
    (stage/'reference').mkdir()
    for name, page in lessons.items():
        text = re.sub(r'^title: .*', f'title: "{name}"', (stage.parent/'reference'/f'{name}.qmd').read_text(), count=1, flags=re.M)
        text = re.sub(r'^## .*\{#(\w+)\}$', lambda m: f'{m[0]}\n\n[lesson](../{page}#{m[1].lower()})\n', text, flags=re.M)
        (stage/'reference'/f'{name}.qmd').write_text(text)
    return [f'reference/{name}.qmd' for name in lessons]


def settle(stage, site_url):
    "Give notebooks the names of their pages, make links to them relative, drop Quarto keys smalldocs does not know, write the sidebar."
    import yaml
    links, lessons_by_name = pages_of_names(stage.parent/'nbs')
    names = {}                                                                 # 10_data.ipynb -> data.ipynb
    for f in sorted(stage.rglob('*.ipynb')):
        out = front(json.loads(f.read_text())).get('output-file', f.name)
        names[f.relative_to(stage).as_posix()] = f.relative_to(stage).with_name(Path(out).stem+'.ipynb').as_posix()
    if len(set(names.values())) < len(names): sys.exit(f'two notebooks would become one page: {sorted(names.values())}')
    base = {Path(a).name: Path(b).name for a, b in names.items() if a != b}
    pattern = re.compile(r'(?<![\w.-])(' + '|'.join(map(re.escape, base)) + ')') if base else None

    def fix(text, depth=0):
        text = re.sub(r'\[!\[([^\]]*)\]\(https?:[^)]*\)\]', r'[\1]', text)       # a badge is a picture from outside: its words stay
        text = text.replace(site_url+'/', '../'*depth)
        return pattern.sub(lambda m: base[m[1]], text) if pattern else text

    for a, b in names.items():
        nb, depth = json.loads((stage/a).read_text()), a.count('/')
        heading_over_code(nb)
        one_fold(nb)
        linked = lambda text: link_names(text, links.get(a, {}), Path(b).with_suffix('.html').name, lessons_by_name, depth)
        for c in nb['cells']:
            src = ''.join(c['source'])
            if c['cell_type'] == 'raw': c['source'] = re.sub(r'^output-file:.*\n', '', src, flags=re.M)
            elif c['cell_type'] == 'markdown': c['source'] = fix(linked(src), depth)
            for o in c.get('outputs', []):
                md = o.get('data', {}).get('text/markdown')
                if md: o['data']['text/markdown'] = fix(linked(''.join(md)), depth)
        (stage/a).unlink()
        (stage/b).write_text(json.dumps(nb))

    pages = [b for a, b in sorted(names.items()) if b != 'index.ipynb']
    inside = lambda folder: [p for p in pages if p.startswith(folder+'/')]
    lessons = [[b for a, b in sorted(names.items()) if '/' not in a and a.startswith(str(d))] for d in range(10)]
    single = [b for a, b in sorted(names.items()) if '/' not in a and not a[0].isdigit() and b != 'index.ipynb']
    contents = [{'text': 'Start', 'href': 'index.ipynb'}, {'section': 'Tutorials', 'contents': inside('tutorials')}]
    contents += [{'section': s, 'contents': found} for s, found in zip(SECTIONS, lessons) if found]
    contents += [*single, {'section': 'Reference', 'contents': add_reference(stage, lessons_by_name)}]
    (stage/'sidebar.yml').write_text(yaml.safe_dump({'website': {'sidebar': {'contents': contents}}}, sort_keys=False))

    conf = yaml.safe_load(fix((stage/'_quarto.yml').read_text()))
    conf['format'].pop('commonmark', None)
    conf['website'].pop('repo-actions', None)
    for bar in ('left', 'right'):                                              # `tutorials/` -> its first page; dropped while there is none
        items = conf['website']['navbar'].get(bar, [])
        for i in items:
            if i.get('href', '').endswith('/'): i['href'] = next((p for p in pages if p.startswith(i['href'])), None)
        if items: conf['website']['navbar'][bar] = [i for i in items if i.get('href') and (i['href'].startswith('http') or i['href'] in names.values())]
    (stage/'_quarto.yml').write_text(yaml.safe_dump(conf, sort_keys=False))


def detach(site):
    "Remove what a page would load from elsewhere or could not load from disk."
    for css in (site/'site_libs').rglob('*.css'):
        css.write_text(re.sub(r'@import\s+(?:url\(\s*["\']?https?://[^)]*\)|(["\'])https?://.*?\1)[^;]*;', '', css.read_text()))
    scripts = [f for f in (site/'site_libs').rglob('*.js') if 'search.json' in f.read_text()]
    fetched = re.compile(r'const r = await fetch\(offset \+ "search\.json"\);\s*index = await r\.json\(\);')
    need(len(scripts) == 1 and fetched.search(scripts[0].read_text()), 'the search script')
    loaded = ('await new Promise((done, failed) => { const s = document.createElement("script"); s.src = offset + "search.js"; '
              's.onload = done; s.onerror = failed; document.head.append(s); });\n      index = window.searchIndex;')
    scripts[0].write_text(fetched.sub(lambda _: loaded, scripts[0].read_text()))
    fuse = re.compile(r'fuse = new window\.Fuse\(index, \{.*?\}\);', re.S)
    need(fuse.search(scripts[0].read_text()), 'the search itself')
    scripts[0].write_text(fuse.sub('fuse = window.searchAllWords(index);', scripts[0].read_text()))
    own = (Path(__file__).parent/'site_search.js').read_text()
    (site/'search.js').write_text('window.searchIndex = '+(site/'search.json').read_text()+';\n'+own)


def index_glossary(site):
    "An anchor for each term of the glossary, and an entry of the search, so that a term is found by itself."
    page, index = site/'glossary.html', site/'search.json'
    entries, taken = json.loads(index.read_text()), set()
    def plain(x): return html.unescape(re.sub(r'<[^>]+>', '', x))
    def anchored(m):
        term, meaning = plain(m[1]), plain(m[2])
        href = f'glossary.html#{re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")}'
        need(href not in taken, f'one anchor for {term}')
        taken.add(href)
        entries.append(dict(objectID=href, href=href, title='Glossary', section=term, text=f'{term}: {meaning}'))
        return m[0].replace('<tr>', f'<tr id="{href.partition("#")[2]}">', 1)
    page.write_text(re.sub(r'<tr>\s*<td[^>]*><strong>(.*?)</strong></td>\s*<td[^>]*>(.*?)</td>', anchored, page.read_text(), flags=re.S))
    need(taken, 'the terms of the glossary')
    entries = [e for e in entries if e['href'] != 'glossary.html']
    index.write_text(json.dumps(entries, ensure_ascii=False))


def mend_anchors(site):
    "A name in backticks links to its own heading, which not every lesson has: point it to its class instead, or to the page."
    ids = {p: set(re.findall(r'\sid="([^"]+)"', p.read_text())) for p in site.rglob('*.html')}
    def mended(page, m):
        target = (page.parent/m[1]).resolve() if m[1] else page
        head = m[2].split('.')[0]
        if target not in ids or m[2] in ids[target]: return m[0]
        return f'href="{m[1]}#{head}"' if head in ids[target] else f'href="{m[1] or page.name}"'
    for page in ids: page.write_text(re.sub(r'href="([^"#:]*)#([\w.-]+)"', lambda m: mended(page, m), page.read_text()))


# ---- all of it

def build(out):
    "Build the site into the folder `out`; the number of pages."
    if not importlib.util.find_spec('smalldocs'): raise Unobtainable('smalldocs is not installed (it needs Python 3.11 or newer). Run: pip install -e ".[dev]" -c constraints.txt')
    math = katex()
    with tempfile.TemporaryDirectory(prefix='genrec-docs-') as tmp:
        work = Path(tmp).resolve()
        for name in ('nbs', 'genrec_nb'): shutil.copytree(ROOT/name, work/name, ignore=SKIP)
        shutil.copy(ROOT/'settings.ini', work)
        env = {'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', **os.environ, 'PYTHONPATH': str(work), 'PYTHONWARNINGS': 'ignore'}
        env.pop('IN_TEST', None)
        step('nbdev', [sys.executable, __file__, '--stage', str(work)], env)
        step('smalldocs', [sys.executable, __file__, '--render', str(work/'_proc')], env)
        site = work/'_proc'/'_docs'
        index_glossary(site)
        detach(site)
        mend_anchors(site)
        bundle_katex(site, math)
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=out.name+'.', dir=out.parent))
        try:
            shutil.copytree(site, new, dirs_exist_ok=True)
            new.chmod(0o755)
            shutil.rmtree(out, ignore_errors=True)
            os.replace(new, out)
        finally: shutil.rmtree(new, ignore_errors=True)
    return len(list(out.rglob('*.html')))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=ROOT/'_docs', help='folder of the site (default: _docs)')
    p.add_argument('--stage', type=Path, help=argparse.SUPPRESS)               # the child that runs nbdev inside the temporary copy
    p.add_argument('--render', type=Path, help=argparse.SUPPRESS)              # the child that writes the pages
    a = p.parse_args()
    if a.stage:
        prepare_pages(a.stage)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)                                                            # the shells of a hundred notebooks would each search all objects for garbage
    if a.render: sys.exit(render(a.render))
    try: n = build(a.out.resolve())
    except (Unobtainable, Failed) as e: sys.exit(f'build_docs: {e}')
    print(f'{a.out}: {n} pages')


if __name__ == '__main__': main()
