// What decided: the text with its words coloured, and the words that weigh most, for each target.
(function () {
  "use strict";
  var facts = view.facts, made = view.made, two = view.two, TOP = 10;
  var UNITS = {"log-probability": ["log-probability", "对数概率"], logit: ["logit", "logit"], value: ["value", "数值"]};

  function signed(value, digits) { return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits === undefined ? 2 : digits); }
  function plain(value) { return (value < 0 ? "−" : "") + Math.abs(value).toFixed(2); }
  function percent(share) { return share >= 0.0995 ? Math.round(share * 100) + " %" : (share * 100).toFixed(share < 0.001 ? 3 : 1) + " %"; }
  function named(text) { return view.readable(text.trim() === "" ? text : text.trim()); }

  function chances() {
    var box = made("div", {class: "bars chances"});
    facts.answers.forEach(function (answer) {
      box.append(made("span", {}, facts.task === "class" ? answer.text : named(answer.text)),
        made("span", {class: "track"}, made("i", {style: {width: 100 * answer.probability + "%"}})),
        made("span", {}, percent(answer.probability)));
    });
    return box;
  }

  function asked() {
    var first = facts.views[0], lead;
    if (facts.task === "class") lead = two("Read as “" + first.target + "”, with these probabilities:", "判为“" + first.target + "”，各类别的概率：");
    else if (facts.task === "number") lead = two("The model says " + plain(first.score) + ".", "模型给出的数值：" + plain(first.score) + "。");
    else if (facts.task === "masked") lead = two("The hidden word, as the model guesses it:", "模型对被遮住的词的猜测：");
    else lead = two(facts.chat ? "The answer may begin with:" : "The next token may be:", facts.chat ? "回答可能以下列词元开头：" : "下一个词元可能是：");
    document.getElementById("question").append(
      made("p", {class: "soft small"}, facts.model + " · " + facts.family), made("p", {}, lead), facts.answers.length ? chances() : "");
  }

  function scale(numbers) { return Math.max.apply(null, numbers.map(Math.abs).concat([1e-9])); }

  function told(number, account) {
    var word = facts.words[number], rows = [];
    if (word.tokens.length > 1) rows = word.tokens.map(function (token) {
      return made("tr", {}, made("td", {}, view.readable(facts.tokens[token].text)), made("td", {}, signed(account.tokens[token], 3)));
    });
    return [made("b", {}, word.text), " ", made("b", {}, signed(account.words[number], 3)), made("br"),
      two("hidden alone: ", "只隐藏它："), signed(-account.hidden[number], 3), rows.length ? made("table", {}, rows) : ""];
  }

  function coloured(account) {
    var most = scale(account.words), box = made("div", {class: "told" + (facts.text.length > 900 ? " long" : "")});
    facts.parts.forEach(function (part) {
      if (part.word === undefined) { box.append(made("span", {class: part.cut ? "cut" : ""}, part.text)); return; }
      var value = account.words[part.word], strength = Math.pow(Math.abs(value) / most, 0.8) * 0.72;
      var tint = "rgba(var(" + (value < 0 ? "--against" : "--for") + ")," + strength.toFixed(3) + ")";
      var word = made("span", {class: "word", tabindex: 0, style: {background: tint}}, part.text);
      box.append(view.tip.on(word, function () { return told(part.word, account); }));
    });
    if (facts.task === "next") box.append(" ", made("span", {class: "answer-word"}, named(account.target)));
    return box;
  }

  function table(account) {
    var order = account.words.map(function (value, number) { return number; });
    order.sort(function (a, b) { return Math.abs(account.words[b]) - Math.abs(account.words[a]); });
    var low = Math.min.apply(null, account.words.concat([0])), high = Math.max.apply(null, account.words.concat([0]));
    var span = high - low || 1, zero = 100 * -low / span, box = made("div", {class: "pull", style: {"--zero": zero + "%"}});
    function head(en, zh, style) { return made("span", {class: "head " + (style || "")}, two(en, zh)); }
    function fill(count) {
      box.replaceChildren(head("word", "词"), head("for or against", "支持 / 反对"), head("adds", "贡献", "num"), head("if hidden", "隐藏后", "num"));
      order.slice(0, count).forEach(function (number) {
        var value = account.words[number], share = 100 * Math.abs(value) / span;
        var bar = made("i", {class: value < 0 ? "against" : "for", style: {left: (value < 0 ? zero - share : zero) + "%", width: share + "%"}});
        box.append(view.tip.on(made("span", {class: "name", tabindex: 0}, facts.words[number].text), function () { return told(number, account); }),
          made("span", {class: "axis"}, bar), made("span", {class: "num"}, signed(value)),
          made("span", {class: "num soft"}, signed(-account.hidden[number])));
      });
    }
    fill(TOP);
    if (order.length <= TOP) return box;
    var more = made("button", {class: "more", type: "button"}, two("all " + order.length + " words", "全部 " + order.length + " 个词"));
    more.addEventListener("click", function () { fill(order.length); more.remove(); });
    return [box, more];
  }

  function sums(account) {
    var unit = UNITS[account.unit], en, zh;
    var base = {mask: ["the mask token", "遮蔽词元"], pad: ["the padding token", "填充词元"], zero: ["a zero embedding", "零向量"],
      "left out": ["nothing", "空"]}[facts.baseline];
    en = ["Score: " + unit[0] + " ", made("b", {}, plain(account.score)), "; with " + base[0] + " in place of every word ", made("b", {}, plain(account.hidden_score)), ". "];
    zh = ["分数（" + unit[1] + "）：", made("b", {}, plain(account.score)), "；所有词都换成" + base[1] + "时：", made("b", {}, plain(account.hidden_score)), "。"];
    if (facts.method === "integrated") {
      en.push("The words sum to ", made("b", {}, signed(account.sum)), ", the change is " + signed(account.score - account.hidden_score)
        + ": a gap of " + percent(account.gap_share) + " after " + account.steps + " steps.");
      zh.push("各词之和 ", made("b", {}, signed(account.sum)), "，分数变化 " + signed(account.score - account.hidden_score)
        + "：积分 " + account.steps + " 步，缺口 " + percent(account.gap_share) + "。");
      if (account.gap_share > 0.01) {
        en.push(" That is more than 1 %: read the words' order, not their values.");
        zh.push("缺口超过 1 %：只看词的次序，不要看具体数值。");
      }
    }
    return made("p", {class: "sums"}, made("span", {class: "t-en", lang: "en"}, en), made("span", {class: "t-zh", lang: "zh"}, zh));
  }

  function card(account) {
    var chance = account.probability === null ? "" : made("span", {class: "badge"}, percent(account.probability));
    var name = facts.task === "next" || facts.task === "masked" ? "“" + named(account.target) + "”" : account.target;
    return made("div", {class: "card"}, made("h3", {}, two("Why " + name + "? ", "为什么是 " + name + "？"), chance),
      coloured(account), table(account), sums(account));
  }

  asked();
  var box = document.getElementById("views");
  if (facts.views.length === 1) box.classList.add("single");
  facts.views.forEach(function (account) { box.append(card(account)); });
})();
