// Search: every word must be found (or one that means the same), headings count most.
(() => {
  // Each line holds phrases that one would search for and that mean the same.
  const SAME = [
    ["cold start", "cold items", "new items", "items that come later", "assign"],
    ["collision policy", "collision policies", "collisions", "equal codes", "duplicate ids"],
    ["significance", "significant", "p-value", "permutation test", "statistical test"],
    ["semantic id", "semantic ids", "identifier", "identifiers", "sem_ids"],
    ["tokenizer", "quantizer", "rq-vae", "rqvae"],
    ["codebook", "codes"],
    ["information gain", "infogain", "igd"],
    ["zero-gain token", "zero-gain tokens", "zero gain", "ghost token", "ghost tokens"],
    ["constrained decoding", "beam search", "prefix_allowed_tokens_fn", "logits processor"],
    ["trie", "prefix tree"],
    ["ablation", "grid", "hyperparameter search", "sweep"],
    ["resume", "checkpoint", "killed"],
    ["save", "load", "from_pretrained", "save_pretrained"],
    ["own data", "csv", "dataset", "data set", "loader"],
    ["embedding", "embeddings", "vectors", "encoder"],
    ["language model", "llm", "lora"],
    ["popularity", "head and tail", "long tail"],
    ["temperature", "ranking-guided"],
    ["curriculum", "multi-target"],
    ["d3", "assistant model", "assistant_weight"],
    ["leak", "data leakage"],
    ["split by time", "temporal split", "leave-one-out", "protocol"],
    ["speed", "benchmark", "bench"],
    ["explain", "explanation"],
    ["k-means", "kmeans", "residual quantization"],
  ];
  const words = (q) => q.toLowerCase().split(/[^\p{L}\p{N}_@.-]+/u).map((w) => w.replace(/^[.-]+|[.-]+$/g, "")).filter((w) => w.length > 1);
  const stem = (w) => (w.length > 4 ? w.replace(/(ies|es|s)$/, "") : w);
  const variants = (q) => {
    const text = " " + words(q).join(" ") + " ", out = [[words(q), 1]];
    SAME.forEach((group) => group.forEach((phrase) => {
      const inside = " " + words(phrase).join(" ") + " ";
      if (text.includes(inside)) group.forEach((other) => { if (other !== phrase) out.push([words(text.replace(inside, " " + other + " ")), 0.6]); });
    }));
    return out;
  };
  const times = (text, w) => Math.min(text.split(w).length - 1, 3);
  window.searchAllWords = (index) => {
    const low = index.map((e) => ({ title: e.title.toLowerCase(), section: (e.section || "").toLowerCase(), text: (e.text || "").toLowerCase() }));
    const score = (e, ws) => {
      let sum = 0, missing = 0;
      ws.map(stem).forEach((w) => {
        const one = 10 * times(e.section, w) + 8 * times(e.title, w) + times(e.text, w);
        if (one) sum += one; else missing += 1;
      });
      const phrase = ws.join(" ");
      if (ws.length > 1 && e.section.includes(phrase)) sum += 20;
      if (e.section === phrase || e.title === phrase) sum += 15;
      return missing ? (missing < ws.length ? sum / 100 / missing : 0) : sum;
    };
    return {
      search: (q, { limit }) => {
        const asked = variants(q);
        return index.map((item, i) => ({ item, s: Math.max(...asked.map(([ws, weight]) => (ws.length ? weight * score(low[i], ws) : 0))) }))
          .filter((h) => h.s > 0).sort((a, b) => b.s - a.s).slice(0, limit || 20);
      },
    };
  };
})();
