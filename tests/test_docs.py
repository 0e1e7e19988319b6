"The documentation site builds, has no broken link, and loads nothing from outside, as headless Chromium sees it."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_docs import IMPORTS, Failed, Unobtainable, build, katex, one_fold
from check_site import Page, check, css_urls, find_browser, js_urls

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason='smalldocs, which renders the site, needs Python 3.11')


@pytest.fixture(scope='session')
def katex_files():
    try: return katex()
    except Unobtainable as e: pytest.skip(str(e))


@pytest.fixture(scope='session')
def site(request, tmp_path_factory):
    "The site, built once: in the folder $GENREC_SITE if it is named, and not again if it stands there"
    folder = Path(os.environ.get('GENREC_SITE') or tmp_path_factory.mktemp('site')/'_docs')
    if folder.exists(): return folder
    request.getfixturevalue('katex_files')
    try: build(folder)
    except Failed as e: pytest.fail(str(e), pytrace=False)
    return folder


def test_every_notebook_has_a_page(site):
    from exec_nbs import ROOT, notebooks
    assert len([p for p in site.rglob('*.html') if p.parent.name != 'reference']) == len(notebooks()), ROOT
    modules = [p.stem for p in (ROOT/'genrec_nb').rglob('*.py') if p.stem[0] != '_']
    assert {p.stem for p in (site/'reference').glob('*.html')} == set(modules)


def test_site_is_sound(site):
    problems, said = check(site)
    assert not problems, '\n'+'\n'.join(problems)
    if find_browser(): assert 'Chromium' in said


QUESTIONS = {'How do I train on my own CSV?': 'how_do_i', 'What happens when two items get the same codes?': 'how_do_i',
             'recommend for a user not in the training data': 'your_own_data', 'add new items without training again': 'how_do_i',
             'why does constrained decoding need a trie': 'glossary', 'what is the information gain of a token and how is it computed': 'infogain',
             'difference between softmax over children and vocabulary': 'likelihood', 'use my own item embeddings': 'how_do_i',
             'how many beams do I need': 'how_do_i', 'is a difference between two methods significant': 'how_do_i',
             'read a published index.json of LETTER': 'how_do_i', 'use a language model from Hugging Face': 'how_do_i',
             'resume a killed training': 'how_do_i', 'ConditionalGeneration': 'tiger', 'exclude items the user has seen': 'beam_search', "how does LETTER's diversity loss work": 'letter',
             'how are equal timestamps ordered': 'data', 'what does alpha do in decoding': 'glossary', 'how long does training take and what hardware': 'how_do_i',
             'make a report from stored rows': 'how_do_i', 'compared with cornac on the same split': 'how_it_compares', 'zero-gain token': 'glossary', 'item_nats': 'exact', 'collis': 'collisions'}


def test_the_search_answers_questions(site):
    "A page that answers is the first or second hit."
    if not shutil.which('node'): pytest.skip('no node found')
    script = ('global.window = {}; eval(require("fs").readFileSync(process.argv[1], "utf8")); const s = window.searchAllWords(window.searchIndex);'
              'console.log(JSON.stringify(JSON.parse(process.argv[2]).map((q) => s.search(q, {limit: 2}).map((h) => h.item.href))))')
    hits = json.loads(subprocess.run(['node', '-e', script, str(site/'search.js'), json.dumps([*QUESTIONS])], capture_output=True, text=True, check=True).stdout)
    lost = {q: found for (q, page), found in zip(QUESTIONS.items(), hits) if page not in [Path(h.partition('#')[0]).stem for h in found]}
    assert not lost


@pytest.mark.parametrize('page, found', [
    ('<a href="gone.html">x</a>', 'gone.html, which does not exist'),
    ('<a href="#nowhere">x</a>', 'no such anchor'),
    ('<a href="../other/">x</a>', 'leads out of the site'),
    ('<script src="https://cdn.example.org/x.js"></script>', 'loads https://cdn.example.org/x.js from outside'),
    ('<style>@import url(//fonts.example.org/a;b.css);</style>', 'loads //fonts.example.org/a;b.css from outside'),
    ('<p style="background:url(https://example.org/a.png)">x</p>', 'loads https://example.org/a.png from outside'),
    ('<img srcset="https://example.org/a.png 2x">', 'from outside'),
    ('<p>see 99_nowhere</p>', 'names a notebook 99_nowhere'),
    ('<pre class="sourceCode cell-code"><code>f(3)</code></pre>', 'code uses f, which the page does not show before')])
def test_the_check_sees_it(page, found, tmp_path):
    (tmp_path/'index.html').write_text(page)
    problems, _ = check(tmp_path, browser='no')
    assert any(found in p for p in problems), problems


def test_the_check_lets_ordinary_links_be(tmp_path):
    (tmp_path/'index.html').write_text('<link rel="canonical" href="https://example.org/"><h1 id="a b">x</h1><a href="https://arxiv.org/">y</a>'
                                       '<a href="#a%20b">z</a><a href="mailto:a@example.org">m</a><img src="data:image/png;base64,AA">')
    assert check(tmp_path, browser='no')[0] == []


@pytest.mark.parametrize('shots', [False, True])
def test_the_browser_sees_it(tmp_path, shots):
    "What no reading of the files shows: a request made by a script, an error, a formula left as it was, code wider than its box; with or without pictures."
    if not find_browser(): pytest.skip('no Chromium found')
    (tmp_path/'index.html').write_text('<style>:root{--bs-body-color:#000}</style><main>\\(x^2\\)<div class="cell"><div class="sourceCode">'
                                       f'<pre style="overflow:auto">{"wide "*200}</pre></div></div></main><script>'
                                       'fetch("http"+"://127.0.0.1:9/x").catch(()=>0); throw Error("planted")</script>')
    text = '\n'.join(check(tmp_path, shots=tmp_path/'shots' if shots else None)[0])
    if shots: assert (tmp_path/'shots'/'index.png').stat().st_size > 1000
    for found in ('requests http://127.0.0.1:9/x', 'planted', '1 formula(s) not rendered', '400 px, 1 code cell(s) are wider', '1280 px, 1 code'): assert found in text, text


def test_imports_in_a_row_are_one_fold():
    cell = lambda kind, source: dict(cell_type=kind, source=source)
    nb = dict(cells=[cell('code', IMPORTS + 'import a\n'), cell('code', '#| eval: false\n' + IMPORTS + 'import b'), cell('markdown', 'text'),
                     cell('code', IMPORTS + 'import c'), cell('code', 'a + b')])
    one_fold(nb)
    assert [c['source'] for c in nb['cells']] == [IMPORTS + 'import a\nimport b', 'text', IMPORTS + 'import c', 'a + b']


def test_readers_of_pages_styles_and_scripts():
    page = Page('<a name="n" id="i" href="x"></a><link rel="stylesheet" href="s.css"><link rel="icon" href="i.png"><img src="p.png" srcset="a 1x, b 2x">')
    assert page.ids == {'n', 'i'} and page.links == ['x'] and page.loads == ['s.css', 'i.png', 'p.png', 'a', 'b']
    assert css_urls('a{b:url("x.png")} /* url(no) */ @import "y.css";') == ['x.png', 'y.css']
    assert js_urls('fetch("https://a/b"); x.src = "https://c/d"; import {y} from "https://e/f"; let z = "https://quiet/"') == ['https://a/b', 'https://c/d', 'https://e/f']
