// What parts are worth: bars of layers, squares of heads, and what excites the neurons that write most.
(function () {
  "use strict";
  var facts = view.facts, made = view.made, two = view.two;
  var PER = {row: "每行", token: "每个词元", "masked token": "每个被遮住的词元"}, UNITS = {documents: "篇文档", windows: "个窗口", rows: "行"};

  function signed(value) {
    var size = Math.abs(value), digits = size >= 9.95 ? 1 : size >= 0.0995 ? 2 : 3;
    return (value < 0 ? "−" : "+") + size.toFixed(digits);
  }
  var sampled = facts.units > 1; // of one unit of text there is no interval
  function free(cost) { return sampled && cost.low <= 0 && cost.high >= 0; }
  function all() { return facts.attention.concat(facts.mlp); }

  function told(en, zh, cost) {
    var rows = [[["nats per " + facts.per, PER[facts.per] + "的奈特"], signed(cost.cost)]];
    if (sampled) rows.push([["95 % interval", "95 % 区间"], signed(cost.low) + " … " + signed(cost.high)]);
    if (cost.bits_per_byte !== null) rows.push([["bits per byte", "每字节比特"], signed(cost.bits_per_byte)]);
    return [made("b", {}, two(en, zh)), made("table", {}, rows.map(function (row) {
      return made("tr", {}, made("td", {}, two(row[0][0], row[0][1])), made("td", {}, made("b", {}, row[1])));
    })), free(cost) ? two("not told from noise", "与噪声无法区分") : ""];
  }

  function lead() {
    var bits = facts.bits_per_byte === null ? "" : " (" + facts.bits_per_byte.toFixed(3) + " bits per byte)";
    var zhBits = facts.bits_per_byte === null ? "" : "（每字节 " + facts.bits_per_byte.toFixed(3) + " 比特）";
    var heads = [].concat.apply([], facts.heads), idle = heads.filter(free).length;
    document.getElementById("lead").append(made("p", {class: "soft small"}, facts.model + " · " + facts.family + " · " + facts.text),
      made("p", {}, two("Whole, the model loses " + facts.loss.toFixed(3) + " nats per " + facts.per + bits + ", on " + facts.tokens.toLocaleString()
        + " tokens of " + facts.units + " " + facts.unit + ". Left out one at a time, its parts cost this much more.",
      "完整模型" + PER[facts.per] + "的损失为 " + facts.loss.toFixed(3) + " 奈特" + zhBits + "，文本共 " + facts.tokens.toLocaleString() + " 个词元、"
        + facts.units + " " + UNITS[facts.unit] + "。逐个去掉部件后，损失增加如下。")),
      !sampled ? made("p", {}, two("One of the " + facts.unit + " is no sample, so there are no intervals; read a longer text to tell noise.",
        "只有一" + UNITS[facts.unit] + "，不成样本，因此没有区间；要分辨噪声，请读更长的文本。"))
      : heads.length ? made("p", {}, two(idle + " of " + heads.length + " heads cost nothing beyond noise here.",
        heads.length + " 个头中有 " + idle + " 个去掉后与噪声无异。")) : "");
    document.getElementById("per").append(...two("Added nats per " + facts.per + (sampled ? ", with 95 % interval" : "") + "; the bars share one scale.",
      "增加的损失（" + PER[facts.per] + "的奈特）" + (sampled ? "及 95 % 区间" : "") + "；所有条形用同一刻度。"));
  }

  function bar(cost, most, en, zh) {
    function place(value) { return Math.max(0, Math.min(100, 100 * value / most)); }
    var low = place(cost.low), high = place(cost.high);
    var box = made("div", {class: "cost" + (free(cost) ? " free" : ""), tabindex: 0}, made("span", {class: "track"},
      made("i", {style: {width: place(cost.cost) + "%"}}), !sampled ? "" : made("b", {style: {left: low + "%", width: high - low + "%"}})),
      made("span", {class: "num"}, signed(cost.cost)));
    return view.tip.on(box, function () { return told(en, zh, cost); });
  }

  function layers() {
    var most = Math.max.apply(null, all().map(function (cost) { return Math.max(cost.high, cost.cost); }).concat([1e-9]));
    var box = made("div", {class: "parts"}, made("span", {class: "head"}, two("layer", "层")),
      made("span", {class: "head"}, two("without its attention", "去掉注意力")), made("span", {class: "head"}, two("without its MLP", "去掉 MLP")));
    facts.mlp.forEach(function (cost, number) {
      var layer = number + 1;
      box.append(made("span", {}, layer), facts.attention.length ? bar(facts.attention[number], most, "layer " + layer + ", attention", "第 " + layer + " 层注意力")
        : made("span"), bar(cost, most, "layer " + layer + ", MLP", "第 " + layer + " 层 MLP"));
    });
    document.getElementById("layers").append(box);
  }

  function heads() {
    var place = document.getElementById("heads"), many = facts.heads[0].length > 8;
    var most = Math.max.apply(null, [].concat.apply([], facts.heads).map(function (cost) { return cost.cost; }).concat([1e-9]));
    view.redraw(function () {
      var table = made("table", {class: "grid" + (many ? " many" : "")}, made("tr", {}, made("th", {}),
        facts.heads[0].map(function (_, head) { return made("th", {}, head + 1); })));
      facts.heads.forEach(function (row, layer) {
        table.append(made("tr", {}, made("th", {}, two("layer " + (layer + 1), "第 " + (layer + 1) + " 层")), row.map(function (cost, head) {
          var weight = Math.max(0, cost.cost) / most, kind = (weight > 0.55 ? "strong" : "") + (sampled && cost.high < 0 ? " saves" : "");
          var cell = made("td", {class: kind, tabindex: 0, style: {background: view.heat(Math.pow(weight, 0.7))}},
            free(cost) ? "·" : many ? "" : signed(cost.cost));
          return view.tip.on(cell, function () { return told("layer " + (layer + 1) + ", head " + (head + 1), "第 " + (layer + 1) + " 层第 " + (head + 1) + " 头", cost); });
        })));
      });
      place.replaceChildren(table);
    });
  }

  function tidy(text) { return text.replace(/\s+/g, " "); }

  function neurons() {
    var place = document.getElementById("neurons");
    facts.neurons.forEach(function (layer, number) {
      var cells = made("div", {class: "cells"});
      layer.forEach(function (neuron) {
        var card = made("div", {class: "card"}, made("h4", {}, two("neuron ", "神经元 "), neuron.number + " ",
          made("span", {}, two("mean ", "平均 "), neuron.mean.toFixed(2), " × ", two("length ", "长度 "), neuron.norm.toFixed(2))));
        neuron.excited.forEach(function (one) {
          card.append(made("div", {class: "line"}, made("span", {class: "num"}, signed(one.value)), made("span", {class: "said"},
            "…" + tidy(one.before), made("mark", {}, tidy(one.token)), tidy(one.after) + "…")));
        });
        cells.append(card);
      });
      var box = made("details", {class: "layer"}, made("summary", {}, two("layer " + (number + 1), "第 " + (number + 1) + " 层")), cells);
      if (number === facts.neurons.length - 1 || facts.neurons.length <= 4) box.open = true;
      place.append(box);
    });
  }

  lead(); layers(); if (facts.heads.length) heads(); neurons();
})();
