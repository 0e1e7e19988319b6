"""Check the built documentation site.

    python .github/scripts/check_site.py [_docs] [--screenshots DIR] [--browser auto|yes|no]

From the files: every internal link and anchor leads somewhere, nothing is loaded from outside (ordinary links to other sites
are fine), no text names a notebook that is not there, and the code that a page shows uses no name that it does not show. In headless Chromium, every page opened straight from disk: no error on the console, no request beyond the
site's own folder, every formula rendered by KaTeX, search finds something, no page wider than its window and no code
wider than its box, at 1280 and at 400 pixels; with --screenshots
also a picture of each page. `auto` leaves the browser part out, and says so, where no Chromium is found (or set CHROMIUM).
Exit status 1 and one line a problem if there is any.
"""
import argparse, ast, base64, builtins, functools, json, os, re, selectors, shutil, subprocess, sys, tempfile, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-gpu-rasterization', '--disable-software-rasterizer', '--disable-extensions', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars', '--window-size=1280,1000')
NOT_LOADED = {'canonical', 'alternate', 'license', 'author', 'next', 'prev', 'home', 'help', 'bookmark'}      # <link rel=…> that fetches nothing


def outside(url): return bool(re.match(r'(?:[a-z][a-z0-9+.-]*:)?//', url, re.I))
def embedded(url): return url.startswith(('data:', 'blob:', 'about:'))


# ---- from the files

COLORS = re.compile(r'<span class="[a-z]{2}">|</span>')                         # of highlighted code: most of a page's tags, with nothing to check
SIDEBAR = re.compile(r'<nav id="quarto-sidebar".*?</nav>', re.S)                # two thirds of the tags that are left


class Page(HTMLParser):
    "The ids of a page, what it links to, and what it loads."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.css = set(), [], [], []
        self.in_style, self.in_code, self.code, self.words = False, None, [], []
        side = SIDEBAR.search(text)
        self.feed(COLORS.sub('', text.replace(side[0], '') if side else text))
        for part in map(entry, re.split('(?=<li )', side[0])) if side else ():
            self.ids |= part.ids
            for kept in ('links', 'loads', 'css', 'words'): getattr(self, kept).extend(getattr(part, kept))
        self.text = ' '.join(self.words)
    def updatepos(self, i, j): return j                                        # lines are not counted
    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k, v in attrs}
        self.in_style = tag == 'style'
        if tag == 'pre' and 'cell-code' in a.get('class', ''): self.in_code = []
        self.ids |= {a[k] for k in ('id', 'name') if k in a}
        if a.get('style'): self.css.append(a['style'])
        if tag in ('a', 'area'):
            if 'href' in a: self.links.append(a['href'])
        elif tag == 'link':
            if 'href' in a and not set(a.get('rel', '').lower().split()) & NOT_LOADED: self.loads.append(a['href'])
        else:
            names = {'object': ['data'], 'image': ['href', 'xlink:href'], 'use': ['href', 'xlink:href']}.get(tag, ['src', 'poster', 'background'])
            self.loads += [a[k] for k in names if k in a]
        self.loads += [s.split()[0] for s in a.get('srcset', '').split(',') if s.strip()]
    def handle_data(self, data):
        if self.in_style: self.css.append(data)
        elif self.in_code is not None: self.in_code.append(data)
        else: self.words.append(data)
    def handle_endtag(self, tag):
        self.in_style = False
        if tag == 'pre' and self.in_code is not None:
            self.code.append(''.join(self.in_code))
            self.in_code = None


@functools.cache
def entry(text):
    "An entry of the sidebar, which is the same on most pages."
    return Page(text)


def css_urls(text):
    "What a style sheet loads: url(…) and @import."
    text = re.sub(r'/\*.*?\*/', '', text, flags=re.S)
    return [m[1] for m in re.finditer(r'url\(\s*["\']?(.*?)["\']?\s*\)', text)] + [m[1] for m in re.finditer(r'@import\s+["\'](.*?)["\']', text)]


def js_urls(text):
    "Addresses on other sites that a script would load, as far as its text shows it (the browser shows the rest)."
    ways = (r'(?:fetch|import|importScripts|Worker)\s*\(\s*', r'\.(?:src|href)\s*=\s*', r'\bfrom\s*')
    return [m[1] for m in re.finditer(f'(?:{"|".join(ways)})["\'`](https?://[^"\'`]+)', text)]


def check_files(site):
    "Problems that the files show, one line each."
    pages = {p: Page(p.read_text()) for p in sorted(site.rglob('*.html'))}
    problems = [] if pages else [f'{site}: no page']

    @functools.cache
    def target(folder, path):
        "The file that a relative address names in a page of that folder, and whether it is there."
        path = (folder/unquote(path)).resolve()
        if path.is_dir(): path = path/'index.html'
        return path, site in path.parents, path.is_file()

    def resolve(source, url):
        "The file that `url` names on the page or style sheet `source`, whether it is inside and there, and its anchor."
        parts = urlsplit(url)
        found = target(source.parent, parts.path) if parts.path else (source, True, True)
        return *found, unquote(parts.fragment)

    def internal(source, url, what='link to'):
        path, inside, there, anchor = resolve(source, url)
        said = lambda problem: problems.append(f'{source.relative_to(site)}: {what} {url}{problem}')
        if not inside: said(' leads out of the site')
        elif not there: said(', which does not exist')
        elif anchor and anchor != 'top' and path in pages and anchor not in pages[path].ids: said(': no such anchor on that page')

    def loaded(source, url):
        if outside(url): problems.append(f'{source.relative_to(site)}: loads {url} from outside')
        elif not embedded(url) and not url.startswith('#'): internal(source, url.split('?')[0], 'loads')

    for path, page in pages.items():
        for url in page.links:
            if not re.match(r'[a-z][a-z0-9+.-]*:|//', url, re.I): internal(path, url)
        for url in page.loads + [u for css in page.css for u in css_urls(css)]: loaded(path, url)
    for path in sorted(site.rglob('*.css')):
        for url in css_urls(path.read_text()): loaded(path, url)
    for path in sorted(site.rglob('*.js')):
        for url in js_urls(path.read_text()): loaded(path, url)
    for path, page in pages.items():
        problems += [f'{path.relative_to(site)}: {what}' for what in (*gone_notebooks(page), *undefined_names(page))]
    if (index := site/'search.json').exists():
        for entry in json.loads(index.read_text()): internal(index, entry['href'], 'entry')
    return problems, pages


@functools.cache
def notebook_names(): return {p.stem for p in (ROOT/'nbs').rglob('*.ipynb')}


def gone_notebooks(page):
    "Notebooks that a page's text names and that are not there."
    found = set(re.findall(r'\b\d\d[a-z]?_[a-z][a-z_]+\b', page.text)) - notebook_names()
    return [f'names a notebook {n}, which does not exist' for n in sorted(found)]


def undefined_names(page):
    "Names that the code of a page uses and the page does not show: at once, or, inside functions, by its end."
    known, later, problems = set(dir(builtins)) | {'__file__', 'display', 'get_ipython'}, {}, []
    for code in page.code:
        try: tree = ast.parse(code)
        except SyntaxError: continue                                           # a magic, or a piece of something
        first = code.strip().splitlines()[0][:60] if code.strip() else ''
        nodes = list(ast.walk(tree))
        known |= defined(nodes)
        inner = {n for f in nodes if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f) if isinstance(n, ast.Name)}
        missing = {n.id for n in nodes if isinstance(n, ast.Name) and n not in inner} - known
        if missing: problems.append(f'code uses {", ".join(sorted(missing))}, which the page does not show before: {first!r}')
        known |= missing
        for name in {n.id for n in inner}: later.setdefault(name, first)
    for name in sorted(set(later) - known): problems.append(f'code uses {name}, which the page does not show: {later[name]!r}')
    return problems


def defined(nodes):
    "Every name that the nodes of a syntax tree bind, in whatever scope."
    names = set()
    for n in nodes:
        if isinstance(n, (ast.Import, ast.ImportFrom)): names |= {a.asname or a.name.split('.')[0] for a in n.names}
        elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): names.add(n.name)
        elif isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load): names.add(n.id)
        elif isinstance(n, ast.arg): names.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name: names.add(n.name)
    return names


# ---- in the browser

def find_browser():
    "Path of a Chromium, from $CHROMIUM or the PATH, or None."
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get('CHROMIUM'), *BROWSERS)))), None)


class Chromium:
    "Headless Chromium spoken to over a pipe in the DevTools protocol: no port, no driver, no package. Unless `visible`, pages are laid out and not drawn."
    def __init__(self, path, timeout=60, visible=False):
        self.timeout, self.events, self.buffer, self.n, self.size = timeout, [], b'', 0, None
        self.home = tempfile.mkdtemp(prefix='genrec-chromium-')
        read_cmd, self.out = os.pipe()
        self.inp, write_reply = os.pipe()
        def wire():                                                            # the protocol's fixed ends: 3 to read, 4 to write
            a, b = os.dup(read_cmd), os.dup(write_reply)
            os.dup2(a, 3); os.dup2(b, 4)
        self.log = open(Path(self.home)/'stderr.txt', 'w+b')
        self.process = subprocess.Popen([path, *FLAGS, f'--user-data-dir={self.home}/profile', '--remote-debugging-pipe', 'about:blank'],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log, preexec_fn=wire,
                                        close_fds=False, start_new_session=True)
        os.close(read_cmd); os.close(write_reply)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.inp, selectors.EVENT_READ)
        try:
            target = self.call('Target.createTarget', url='about:blank', background=not visible)['targetId']
            self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        except BaseException: self.close(); raise
    def __enter__(self): return self
    def __exit__(self, *_): self.close()
    def close(self):
        self.process.terminate()
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
        self.selector.close(); os.close(self.inp); os.close(self.out); self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)
    def receive(self, until):
        "The next message before the time `until`, or None."
        while b'\0' not in self.buffer:
            if not self.selector.select(max(0, until-time.monotonic())): return None
            data = os.read(self.inp, 1 << 20)
            if not data:
                self.log.seek(0)
                raise RuntimeError(f"Chromium ended: {self.log.read()[-400:].decode(errors='replace').strip()}")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)
    def call(self, method, **params):
        "One command; events that arrive meanwhile are kept in `events`."
        self.n += 1
        message = dict(id=self.n, method=method, params=params)
        if not method.startswith('Target.'): message['sessionId'] = self.session
        data = memoryview(json.dumps(message).encode()+b'\0')
        while data: data = data[os.write(self.out, data):]
        until = time.monotonic()+self.timeout
        while reply := self.receive(until):
            if reply.get('id') == self.n:
                if 'error' in reply: raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply['result']
            self.events.append(reply)
        raise TimeoutError(f'Chromium gave no answer to {method} within {self.timeout} s')
    def wait_for(self, event):
        "Block until `event` has been seen since the last `events.clear()`."
        until = time.monotonic()+self.timeout
        while not any(e.get('method') == event for e in self.events):
            message = self.receive(until)
            if message is None: raise TimeoutError(f'{event} did not come within {self.timeout} s')
            self.events.append(message)
    def open(self, path, width=1280, height=1000):
        "Load a page from disk into a window of that size; `events` then holds what happened meanwhile."
        self.events.clear()
        self.resize(width, height)
        self.call('Page.navigate', url=path.as_uri())
        self.wait_for('Page.loadEventFired')
    def resize(self, width, height=1000):
        "Give the window that size, unless it has it."
        if self.size == (width, height): return
        self.size = width, height
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)   # a phone would zoom out where a page is too wide
    def run(self, script):
        "The value of a JavaScript expression on the page (promises are awaited)."
        r = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in r: raise RuntimeError(r['exceptionDetails'].get('exception', {}).get('description', 'script failed'))
        return r['result'].get('value')


LOOK = r'''(async () => {
  document.body.offsetHeight;                                                     // laid out, which asks for the fonts
  await document.fonts.ready;
  const skip = 'pre,code,script,style,.katex,textarea', walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), raw = [];
  for (let n; n = walk.nextNode();)
    if (!n.parentElement.closest(skip) && /\\\(|\\\[|\$\$|\\(?:frac|sum|mathbf|begin)\b/.test(n.data)) raw.push(n.data.trim().slice(0, 60));
  const theme = getComputedStyle(document.documentElement).getPropertyValue('--bs-body-color').trim();
  return {theme, katex: document.querySelectorAll('.katex').length, raw,
          errors: [...document.querySelectorAll('.katex-error')].map(e => e.textContent.slice(0, 60)),
          broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 80)),
          fonts: [...document.fonts].filter(f => f.family.startsWith('KaTeX') && f.status === 'loaded').length};
})()'''
SEARCH = r'''(async (word) => {
  const box = document.querySelector('.smalldocs-search'), input = box && box.querySelector('input');
  if (!input) return -1;
  input.value = word; input.dispatchEvent(new Event('input'));
  for (let i = 0; i < 50; i++) { await new Promise(r => setTimeout(r, 100)); const n = box.querySelectorAll('.search-result').length; if (n) return n; }
  return 0;
})(%s)'''


CUT = r'''(() => {
  const clipped = e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth;
  return {wide: document.documentElement.scrollWidth - innerWidth,
          code: [...document.querySelectorAll('main .cell > .sourceCode pre, main .cell > details pre, main pre.sourceCode')]
                .filter(e => !e.closest('.cell-output') && clipped(e)).map(e => e.textContent.split('\n').sort((a, b) => b.length - a.length)[0].slice(0, 70))};
})()'''


def look_at(browser, path, site, shots, problems):
    "Open one page, note what is wrong with it and take its picture; the number of formulas on it."
    name = path.relative_to(site)
    widths = (400, 1280) if browser.size == (400, 1000) and not shots else (1280, 400)      # as the window is: no page is laid out without need
    browser.open(path, widths[0])
    seen = browser.run(LOOK)
    if not seen['theme']: problems.append(f'{name}: the theme is not applied')
    if seen['raw']: problems.append(f"{name}: {len(seen['raw'])} formula(s) not rendered: {seen['raw'][0]!r}")
    if seen['errors']: problems.append(f"{name}: KaTeX cannot read {seen['errors'][0]!r}")
    if seen['katex'] and not seen['fonts']: problems.append(f"{name}: {seen['katex']} formulas, but no KaTeX font was loaded")
    if seen['broken']: problems.append(f"{name}: picture not shown: {seen['broken'][0]}")
    for width in widths:
        browser.resize(width)
        cut = browser.run(CUT)
        if cut['wide'] > 1: problems.append(f"{name}: {cut['wide']} px wider than a window of {width} px")
        if cut['code']: problems.append(f"{name}: in a window of {width} px, {len(cut['code'])} code cell(s) are wider than their box: {cut['code'][0]!r}")
    if shots: picture(browser, shots/f"{'-'.join(name.with_suffix('').parts)}.png", 1280)
    problems += trouble(browser, name, site)
    return seen['katex']


def trouble(browser, name, site):
    "What the browser complained about, and what it asked for beyond the site, since the page was opened."
    problems = []
    for e in browser.events:
        p = e.get('params', {})
        if e.get('method') == 'Network.requestWillBeSent':
            url = p['request']['url']
            if not embedded(url) and not url.startswith(site.as_uri()+'/'): problems.append(f'{name}: requests {url}')
        elif e.get('method') == 'Network.loadingFailed' and not p.get('canceled'): problems.append(f"{name}: a request failed: {p.get('errorText')}")
        elif e.get('method') == 'Runtime.exceptionThrown':
            d = p['exceptionDetails']
            problems.append(f"{name}: error in a script: {d.get('exception', {}).get('description', d['text'])[:200]}")
        elif e.get('method') == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'):
            problems.append(f"{name}: console error: {' '.join(str(a.get('value', a.get('description'))) for a in p['args'])[:200]}")
        elif e.get('method') == 'Log.entryAdded' and p['entry']['level'] == 'error': problems.append(f"{name}: console: {p['entry']['text'][:200]}")
    return problems


def picture(browser, path, width, most=12000):
    "The whole page, `width` px wide and at most `most` px high, as a PNG."
    height = min(most, int(browser.run('Math.max(document.documentElement.scrollHeight, 600)')))
    browser.resize(width, height)
    path.write_bytes(base64.b64decode(browser.call('Page.captureScreenshot', format='png')['data']))


def check_browser(site, pages, chromium, shots):
    "Problems that the browser shows, and the number of formulas it rendered."
    problems, formulas = [], 0
    if shots: shots.mkdir(parents=True, exist_ok=True)
    with Chromium(chromium, visible=bool(shots)) as browser:
        for domain in ('Page', 'Network', 'Runtime', 'Log'): browser.call(f'{domain}.enable')
        for path in pages: formulas += look_at(browser, path, site, shots, problems)
        start = site/'index.html' if site/'index.html' in pages else next(iter(pages))
        browser.open(start)
        entries = json.loads((site/'search.json').read_text()) if (site/'search.json').exists() else []
        word = max(re.findall(r'[A-Za-z]+', ' '.join(e['text'] for e in entries)), key=len, default=None)
        if word and not browser.run(SEARCH % json.dumps(word)): problems.append(f'{start.name}: search finds nothing for {word!r}')
        problems += trouble(browser, start.name, site)
        if shots:
            browser.open(start, 390, 844)
            picture(browser, shots/'index-narrow.png', 390, 2000)
    return problems, formulas


def check(site, browser='auto', shots=None):
    "All problems of the site, and a sentence that says what was looked at."
    site = Path(site).resolve()
    problems, pages = check_files(site)
    said = f'{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links'
    chromium = find_browser() if browser != 'no' else None
    if chromium and pages:
        more, formulas = check_browser(site, pages, chromium, shots and Path(shots))
        return problems+more, f'{said}, {formulas} formulas rendered in headless Chromium'
    if browser == 'yes': problems.append('no Chromium found: install one, or set CHROMIUM to its path')
    return problems, f'{said}; not looked at in a browser' + ('' if chromium or browser == 'no' else ' (no Chromium found)')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('site', nargs='?', type=Path, default=Path(__file__).resolve().parents[2]/'_docs')
    p.add_argument('--screenshots', type=Path, metavar='DIR')
    p.add_argument('--browser', choices=('auto', 'yes', 'no'), default='auto')
    a = p.parse_args()
    problems, said = check(a.site, a.browser, a.screenshots)
    print(*problems, sep='\n', end='\n' if problems else '')
    print(f"{a.site}: {said}; {f'{len(problems)} problems' if problems else 'all well'}")
    sys.exit(bool(problems))


if __name__ == '__main__': main()
