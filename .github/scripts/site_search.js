// Search: BM25 over headings and text. A heading counts most, a rare word more than a common one.
(() => {
  // Each line holds phrases that one would search for and that mean the same.
  const SAME = [
    ["cold start", "cold item", "new items", "items that come later", "assign"],
    ["new user", "user not in the training data", "unknown user", "history of titles"],
    ["collision", "same codes", "equal codes", "collide", "duplicate ids"],
    ["significance", "significant", "p-value", "permutation test", "statistical test"],
    ["semantic id", "identifier", "sem_ids"],
    ["tokenizer", "quantizer", "rq-vae", "rqvae"],
    ["codebook size", "number of codes", "how many codes", "how many levels", "levels and size"],
    ["information gain", "infogain", "igd"],
    ["zero-gain token", "zero gain", "ghost token"],
    ["constrained decoding", "prefix_allowed_tokens_fn", "logits processor"],
    ["beam width", "how many beams", "number of beams", "beam misses"],
    ["trie", "prefix tree"],
    ["ablation", "grid", "sweep"],
    ["tune", "hyperparameter", "hyperparameter search", "chosen by validation"],
    ["resume", "checkpoint", "killed", "stopped", "interrupted", "crash"],
    ["save", "load", "from_pretrained", "save_pretrained"],
    ["csv", "own data", "own files", "data set", "dataset", "loader"],
    ["embedding", "vectors", "encoder"],
    ["language model", "llm", "lora"],
    ["hugging face", "huggingface", "transformers", "by name or folder"],
    ["popularity", "head and tail", "long tail"],
    ["temperature", "ranking-guided"],
    ["curriculum", "multi-target"],
    ["d3", "assistant model", "assistant_weight"],
    ["leak", "data leakage"],
    ["split by time", "temporal split", "leave-one-out", "protocol"],
    ["equal times", "equal timestamps", "same timestamp", "tied timestamps", "order of ties", "tie"],
    ["speed", "benchmark", "bench", "how long", "hardware", "run time"],
    ["gpu", "cuda", "device"],
    ["out of memory", "memory limit", "oom"],
    ["filter", "restrict", "leave out", "exclude"],
    ["explain", "explanation"],
    ["category", "genre"],
    ["implicit feedback", "clicks", "ratings"],
    ["own weighting", "rule of your own", "custom weighting"],
    ["alpha", "α"], ["beta", "β"], ["tau", "τ"],
    ["report", "tables", "page"],
    ["stored rows", "stored results"],
    ["k-means", "kmeans", "residual quantization"],
  ];
  const COMMON = new Set(("a about an and any are as at be been by can compute difference do does for from get give had has have how i if in into is it its " +
    "like made make many me mean much my need not of on one only or per should so than that the their them then there these they this to use used " +
    "user's using want was we what when where which while who why will with work works would you your").split(" "));
  const cut = (w) => w.replace(/(?<=[a-z]{3})(ations?|ances?|ants?|ings?|ions?|ers?|ors?|ed|ies|es|(?<!s)s|e|y)$/, "");
  const stem = (w) => cut(cut(w));
  const plain = (text) => text.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter((w) => w.length > 1 || w > "~");
  const words = (text) => { const all = plain(text), rare = all.filter((w) => !COMMON.has(w)); return (rare.length ? rare : all).map(stem); };
  const variants = (q) => {
    let out = [[` ${plain(q).map(stem).join(" ")} `, 1]];
    SAME.forEach((group) => {
      const inside = group.map((phrase) => ` ${plain(phrase).map(stem).join(" ")} `);
      out.slice(0, 30).forEach(([text, weight]) => inside.filter((a) => text.includes(a)).forEach((a) =>
        inside.filter((b) => b !== a).forEach((b) => out.push([text.replace(a, b), weight * 0.85]))));
    });
    const common = new Set([...COMMON].map(stem));
    return out.map(([text, weight]) => {
      const all = text.split(" ").filter(Boolean), rare = all.filter((w) => !common.has(w));
      return [[...new Set(rare.length ? rare : all)], weight];
    });
  };
  window.searchAllWords = (index) => {
    const where = new Map(), pages = index.map((e) => ({ section: ` ${words(e.section || e.title).join(" ")} `,
      weight: e.href.startsWith("reference/") ? 0.7 : /^(how_do_i|glossary)/.test(e.href) ? 1.1 : /^\S+$/.test(e.section) ? 0.85 : 1 }));
    const put = (text, i, weight) => words(text).forEach((w) => {
      if (!where.has(w)) where.set(w, new Map());
      where.get(w).set(i, (where.get(w).get(i) || 0) + weight);
    });
    const mean = index.reduce((n, e) => n + (e.text || "").length, 0) / index.length;
    index.forEach((e, i) => { put(e.text || "", i, 1 / (0.4 + 0.6 * (e.text || "").length / mean)); put(e.section || e.title, i, 5); put(e.title, i, 3); });
    const found = (w) => {  // a word that is nowhere: the beginning of others, else a part of them
      if (where.has(w) || w.length < 2) return where.get(w) || new Map();
      const out = new Map(), like = (test) => where.forEach((at, word) => { if (test(word)) at.forEach((n, i) => out.set(i, Math.max(n, out.get(i) || 0))); });
      like((word) => word.startsWith(w));
      if (!out.size && w.length > 3) like((word) => word.includes(w));
      return out;
    };
    const scores = (ws) => {  // of each entry, at most 1
      const out = new Map(), at = ws.map(found), rare = at.map((m) => Math.log(1 + (index.length - m.size + 0.5) / (m.size + 0.5)));
      const all = rare.reduce((a, b) => a + b, 0);
      at.forEach((m, j) => m.forEach((n, i) => out.set(i, (out.get(i) || 0) + (rare[j] / all) * n / (n + 1.5))));
      out.forEach((s, i) => {
        const phrase = ` ${ws.join(" ")} `;
        if (pages[i].section === phrase) s += 0.3; else if (ws.length > 1 && pages[i].section.includes(phrase)) s += 0.15;
        out.set(i, s * pages[i].weight);
      });
      return out;
    };
    return {
      search: (q, { limit }) => {
        const best = new Map();
        variants(q).forEach(([ws, weight]) => scores(ws).forEach((s, i) => best.set(i, Math.max(best.get(i) || 0, s * weight))));
        const name = q.trim().toLowerCase();
        index.forEach((e, i) => { if ([(e.section || "").toLowerCase(), e.href.replace(".html", "")].includes(name)) best.set(i, (best.get(i) || 0) + 0.5); });
        return [...best].map(([i, s]) => ({ item: index[i], s })).sort((a, b) => b.s - a.s).slice(0, limit || 20);
      },
    };
  };
})();
