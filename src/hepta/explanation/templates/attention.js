(function () {
  "use strict";
  var facts = view.facts, made = view.made, two = view.two, tip = view.tip;
  var SVG = "http://www.w3.org/2000/svg", ROW = 22, MOST_ROWS = 14, parts = [];
  var HABITS = {first: ["first token", "首词元"], previous: ["previous token", "前一个词元"], itself: ["itself", "自身"],
    last: ["last token", "末词元"], next: ["next token", "后一个词元"], even: ["spread evenly", "平均分布"],
    mixed: ["mixed", "混合"]};
  var PARTS = {encoder: ["Encoder: the source looks at itself", "编码器：原文看自己"],
    cross: ["Across: each token of the translation, as it is chosen, looks at the source", "交叉注意力：译文的每个词元在被选出时看原文"],
    decoder: ["Decoder: the translation so far looks at itself", "解码器：已生成的译文看自己"]};

  function name(piece) { return piece.special === "bos" || piece.special === "eos" ? "‹" + piece.special + "›" : view.readable(piece.text); }
  function names(part, list) { return list.map(function (i) { return name(part.queries[i]); }).join(" "); }
  function shown(weight) { return weight.toFixed(4); }
  function svg(tag, options, text) {
    var element = document.createElementNS(SVG, tag);
    Object.keys(options).forEach(function (key) { element.setAttribute(key, options[key]); });
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // The mean of several rows, or of several maps' values: arrays of equal length.
  function mean(lists) {
    return lists[0].map(function (_, i) { return lists.reduce(function (sum, one) { return sum + one[i]; }, 0) / lists.length; });
  }

  // A map as rows of weights: of one head (0 …), or with head -1 of all heads' mean; of long texts, of bins.
  function map(part, layer, head) {
    var all = part.layers[layer], maps = all.weights || all.picture, scale = all.weights ? 1 : 0.01;
    var key = layer + "/" + head;
    if (!part.kept[key]) {
      var chosen = head < 0 ? maps[0].map(function (_, q) { return mean(maps.map(function (one) { return one[q]; })); }) : maps[head];
      part.kept[key] = scale === 1 ? chosen : chosen.map(function (row) { return row.map(function (w) { return w * scale; }); });
    }
    return part.kept[key];
  }

  // Links [[key, weight], …] of the chosen tokens; null where they were not kept.
  function links(part) {
    var layer = part.layers[part.layer], same = String(part.chosen) === String(part.focus);
    if (part.whole) {
      var rows = map(part, part.layer, part.head);
      return mean(part.chosen.map(function (q) { return rows[q]; })).map(function (w, k) { return [k, w]; });
    }
    if (same) return part.head < 0 ? layer.links : layer.heads[part.head].links;
    return part.head < 0 && part.chosen.length === 1 ? layer.tokens[part.chosen[0]] : null;
  }

  function where(part) {
    var layer = part.layer + 1;
    return part.head < 0 ? two("layer " + layer + ", mean of " + part.heads + " heads", "第 " + layer + " 层，" + part.heads + " 个头的平均")
      : two("layer " + layer + ", head " + (part.head + 1), "第 " + layer + " 层，第 " + (part.head + 1) + " 个头");
  }

  // ---- the word's links: from the token to what it looks at, thickness by weight; what it cannot see stands grey
  function drawFan(part) {
    var keys = part.keyPieces, found = links(part);
    part.fan.replaceChildren();
    if (!found) {
      part.fan.appendChild(made("p", {class: "soft small"}, two("Of so long a text only the mean of the heads is kept for this token: choose the left column of squares.",
        "文本太长，对这个词元只保留了各头的平均：请选小方块最左一列。")));
      return;
    }
    var strong = found.slice().sort(function (a, b) { return b[1] - a[1]; });
    var rows = strong.filter(function (pair) { return pair[1] > 0; }).slice(0, MOST_ROWS), last = Math.max.apply(null, part.chosen);
    if (part.whole && keys.length <= MOST_ROWS) rows = found;
    rows = rows.slice().sort(function (a, b) { return a[0] - b[0]; });
    var height = rows.length * ROW + 10, middle = height / 2, label = names(part, part.chosen);
    var width = Math.min(416, part.fan.clientWidth || 360), left = Math.min(150, 14 + 9 * label.length), right = width - 150;
    var picture = svg("svg", {class: "fan", viewBox: "0 0 " + width + " " + height, role: "img"});
    picture.appendChild(svg("text", {x: left - 8, y: middle + 5, "text-anchor": "end", class: "chosen"}, label.length > 15 ? label.slice(0, 14) + "…" : label));
    rows.forEach(function (pair, i) {
      var y = i * ROW + ROW / 2 + 5, hidden = part.causal && pair[0] > last, piece = keys[pair[0]], weight = pair[1];
      if (!hidden && weight > 0) {
        picture.appendChild(svg("path", {d: "M" + left + " " + middle + "C" + (left + right) / 2 + " " + middle + " " + (left + right) / 2 + " " + y + " " + right + " " + y,
          "stroke-width": Math.max(0.6, 11 * weight).toFixed(2), "stroke-opacity": (0.35 + 0.6 * weight).toFixed(2)}));
      }
      var group = svg("g", {tabindex: 0, "data-weight": shown(weight), "data-key": pair[0]});
      var text = name(piece);
      group.appendChild(svg("text", {x: right + 8, y: y + 4.5, class: hidden ? "unseen" : ""}, text.length > 11 ? text.slice(0, 10) + "…" : text));
      group.appendChild(svg("text", {x: width - 2, y: y + 4.5, "text-anchor": "end", class: "soft"}, hidden ? "—" : (100 * weight).toFixed(1) + " %"));
      tip.on(group, function () {
        return hidden ? [name(piece), ": ", two("comes later, so it cannot be seen", "在后面，看不到")]
          : [label, " → ", name(piece), " ", made("b", {}, shown(weight)), made("br"), where(part)];
      });
      picture.appendChild(group);
    });
    part.fan.appendChild(picture);
    var left_out = keys.length - rows.length;
    part.fan.appendChild(made("p", {class: "caption soft"}, where(part), left_out > 0
      ? two("; the " + rows.length + " strongest of " + keys.length, "；" + keys.length + " 个中最强的 " + rows.length + " 个") : null));
  }

  // ---- the grid of small maps on one canvas: layers from top to bottom, the mean and the heads from left to right
  function paint(part, layer, head) {
    var rows = map(part, layer, head), small = document.createElement("canvas");
    small.width = rows[0].length; small.height = rows.length;
    var context = small.getContext("2d"), image = context.createImageData(small.width, small.height);
    var hex = view.colour("--accent").slice(1), rgb = [0, 2, 4].map(function (i) { return parseInt(hex.substr(i, 2), 16); });
    rows.forEach(function (row, q) {
      row.forEach(function (weight, k) { image.data.set([rgb[0], rgb[1], rgb[2], 255 * Math.sqrt(weight)], 4 * (q * row.length + k)); });
    });
    context.putImageData(image, 0, 0);
    return small;
  }

  function gridSize(part) {
    var columns = part.heads + 1, room = Math.max(200, (part.box.clientWidth || 360) - 36);
    return {columns: columns, cell: Math.max(11, Math.min(56, Math.floor(room / columns) - 3, Math.max(24, Math.floor(900 / part.layers.length) - 3))), gap: 3, left: 24, top: 18};
  }

  function drawGrid(part) {
    var size = gridSize(part), step = size.cell + size.gap;
    var width = size.left + size.columns * step + 6, height = size.top + part.layers.length * step + 2;
    var context = view.sharp(part.grid, width, height);
    context.font = "10.5px system-ui, sans-serif"; context.fillStyle = view.colour("--soft"); context.textAlign = "center";
    var every = size.cell < 16 ? 2 : 1;
    for (var c = 0; c < size.columns; c++) {
      if (c === 0 || c % every === 0) context.fillText(c === 0 ? "x̄" : c, size.left + c * step + (c ? 4 : 0) + size.cell / 2, 12);
    }
    part.layers.forEach(function (_, l) {
      var y = size.top + l * step;
      context.fillStyle = view.colour("--soft"); context.textAlign = "right";
      context.fillText(l + 1, size.left - 6, y + size.cell / 2 + 4);
      for (var c = 0; c < size.columns; c++) {
        var x = size.left + c * step + (c ? 4 : 0), chosen = l === part.layer && c - 1 === part.head;
        context.fillStyle = view.colour("--paper"); context.fillRect(x, y, size.cell, size.cell);
        context.imageSmoothingEnabled = part.layers[l].weights ? part.queries.length > size.cell : true;
        context.drawImage(paint(part, l, c - 1), x, y, size.cell, size.cell);
        context.strokeStyle = view.colour(chosen ? "--ink" : "--line"); context.lineWidth = chosen ? 2 : 1;
        context.strokeRect(x - 0.5, y - 0.5, size.cell + 1, size.cell + 1);
      }
    });
  }

  function gridAt(part, event) {
    var box = part.grid.getBoundingClientRect(), size = gridSize(part), step = size.cell + size.gap;
    var column = Math.floor((event.clientX - box.left - size.left) / step), layer = Math.floor((event.clientY - box.top - size.top) / step);
    return layer >= 0 && layer < part.layers.length && column >= 0 && column < size.columns ? [layer, column - 1] : null;
  }

  function told(part, layer, head) {
    if (head < 0) return two("layer " + (layer + 1) + ": mean of the heads", "第 " + (layer + 1) + " 层：各头平均");
    var one = part.layers[layer].heads[head], habit = HABITS[one.habit];
    var share = one[one.habit] === undefined ? "" : " " + Math.round(100 * one[one.habit]) + " %";
    return two("layer " + (layer + 1) + ", head " + (head + 1) + ": " + habit[0] + share + "; entropy " + one.entropy.toFixed(2) + " nats",
      "第 " + (layer + 1) + " 层第 " + (head + 1) + " 个头：" + habit[1] + share + "；熵 " + one.entropy.toFixed(2) + " 奈特");
  }

  // ---- the large map with its tokens' names
  function largeSize(part) {
    var rows = map(part, part.layer, part.head), room = Math.min(560, (part.box.clientWidth || 360) - 4);
    var left = Math.min(96, Math.max(44, room * 0.2)), cell = Math.max(2, Math.min(38, Math.floor((room - left - 4) / rows[0].length)));
    var longest = Math.max.apply(null, part.keyPieces.slice(0, 400).map(function (piece) { return name(piece).length; }));
    return {left: left, top: Math.min(left * 0.9, 22 + 6 * longest), cell: cell, rows: rows.length, columns: rows[0].length};
  }

  function range(pieces, bin, i) {
    var first = i * bin, last = Math.min(first + bin, pieces.length) - 1;
    return first === last ? name(pieces[first]) : name(pieces[first]) + " … " + name(pieces[last]) + " (" + (first + 1) + "–" + (last + 1) + ")";
  }

  function drawLarge(part) {
    var size = largeSize(part), rows = map(part, part.layer, part.head);
    var context = view.sharp(part.large, size.left + size.columns * size.cell + 3, size.top + size.rows * size.cell + 3);
    context.font = Math.max(9, Math.min(12, size.cell - 1)) + "px system-ui, sans-serif";
    context.fillStyle = view.colour("--paper"); context.fillRect(size.left, size.top, size.columns * size.cell, size.rows * size.cell);
    context.imageSmoothingEnabled = false;
    context.drawImage(paint(part, part.layer, part.head), size.left, size.top, size.columns * size.cell, size.rows * size.cell);
    var every = Math.ceil(11 / size.cell), binQ = part.whole ? 1 : part.bin[0], binK = part.whole ? 1 : part.bin[1];
    function label(piece) { var text = name(piece), most = Math.floor(size.left / 7.2); return text.length > most ? text.slice(0, most - 1) + "…" : text; }
    for (var q = 0; q < size.rows; q += every) {
      var chosen = part.chosen.some(function (c) { return Math.floor(c / binQ) === q; });
      context.fillStyle = view.colour(chosen ? "--accent" : "--ink"); context.textAlign = "right";
      context.fillText(label(part.queries[q * binQ]), size.left - 5, size.top + (q + 0.5) * size.cell + 4);
    }
    context.fillStyle = view.colour("--ink"); context.textAlign = "left";
    for (var k = 0; k < size.columns; k += every) {
      context.save(); context.translate(size.left + (k + 0.5) * size.cell + 3, size.top - 6); context.rotate(-Math.PI / 3);
      context.fillText(label(part.keyPieces[k * binK]), 0, 0); context.restore();
    }
    context.strokeStyle = view.colour("--accent"); context.lineWidth = 1.5;
    part.chosen.forEach(function (c) {
      context.strokeRect(size.left - 0.5, size.top + Math.floor(c / binQ) * size.cell, size.columns * size.cell + 1, size.cell);
    });
    if (part.cursor) {
      context.strokeStyle = view.colour("--ink"); context.lineWidth = 2;
      context.strokeRect(size.left + part.cursor[1] * size.cell, size.top + part.cursor[0] * size.cell, size.cell, size.cell);
    }
    part.caption.replaceChildren.apply(part.caption, told(part, part.layer, part.head));
  }

  function largeAt(part, event) {
    var box = part.large.getBoundingClientRect(), size = largeSize(part);
    var k = Math.floor((event.clientX - box.left - size.left) / size.cell), q = Math.floor((event.clientY - box.top - size.top) / size.cell);
    return q >= 0 && q < size.rows && k >= 0 && k < size.columns ? [q, k] : null;
  }

  function cellTold(part, q, k) {
    var weight = map(part, part.layer, part.head)[q][k], binQ = part.whole ? 1 : part.bin[0], binK = part.whole ? 1 : part.bin[1];
    var text = [range(part.queries, binQ, q), " → ", range(part.keyPieces, binK, k), " ", made("b", {}, part.whole ? shown(weight) : weight.toFixed(2))];
    return part.whole ? text : text.concat(two(" at most", "（最大）"));
  }

  // ---- choosing
  function update(part) { drawGrid(part); drawLarge(part); drawFan(part); mark(part); }
  function mark(part) {
    part.chips.forEach(function (chip, i) {
      var chosen = part.chosen.indexOf(i) >= 0;
      chip.classList.toggle("chosen", chosen); chip.setAttribute("aria-pressed", chosen);
    });
    var first = part.chips[part.chosen[0]];
    if (part.row.scrollHeight > part.row.clientHeight + 8) part.row.scrollTop = first.offsetTop - part.row.offsetTop - 60;
  }
  function choose(part, list) {
    part.chosen = list; part.cursor = null; update(part);
    var piece = part.queries[list[0]];
    if (piece.special || part.part !== "self") return;
    parts.forEach(function (other) {  // the same characters in the other model
      if (other === part || other.part !== "self") return;
      var same = [];
      other.queries.forEach(function (one, i) { if (!one.special && one.start < piece.end && one.end > piece.start) same.push(i); });
      if (same.length) { other.chosen = same; other.cursor = null; update(other); }
    });
  }

  function listen(part) {
    part.grid.addEventListener("mousemove", function (event) {
      var at = gridAt(part, event);
      if (at) tip.show(event.clientX, event.clientY, told(part, at[0], at[1])); else tip.hide();
    });
    part.grid.addEventListener("click", function (event) {
      var at = gridAt(part, event);
      if (at) { part.layer = at[0]; part.head = at[1]; part.cursor = null; update(part); tip.show(event.clientX, event.clientY, told(part, at[0], at[1])); }
    });
    part.grid.addEventListener("keydown", function (event) {
      var step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!step) return;
      event.preventDefault();
      part.layer = Math.max(0, Math.min(part.layers.length - 1, part.layer + step[0]));
      part.head = Math.max(-1, Math.min(part.heads - 1, part.head + step[1]));
      update(part); say(told(part, part.layer, part.head));
    });
    function point(event, pressed) {
      var at = largeAt(part, event);
      if (!at) { tip.hide(); return; }
      if (pressed) { part.whole ? choose(part, [at[0]]) : (part.cursor = at, drawLarge(part)); }
      tip.show(event.clientX, event.clientY, cellTold(part, at[0], at[1]));
    }
    part.large.addEventListener("mousemove", function (event) { point(event, false); });
    part.large.addEventListener("click", function (event) { point(event, true); });
    part.large.addEventListener("keydown", function (event) {
      var step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key], size = largeSize(part);
      if (!step) return;
      event.preventDefault();
      var at = part.cursor || [part.whole ? part.chosen[0] : 0, 0];
      part.cursor = [Math.max(0, Math.min(size.rows - 1, at[0] + step[0])), Math.max(0, Math.min(size.columns - 1, at[1] + step[1]))];
      drawLarge(part);
      var box = part.large.getBoundingClientRect(), text = cellTold(part, part.cursor[0], part.cursor[1]);
      tip.show(box.left + size.left + part.cursor[1] * size.cell, box.top + size.top + part.cursor[0] * size.cell, text); say(text);
    });
    [part.grid, part.large].forEach(function (canvas) { ["mouseleave", "blur"].forEach(function (leave) { canvas.addEventListener(leave, tip.hide); }); });
  }

  function say(content) {
    var line = document.getElementById("said");
    line.replaceChildren.apply(line, content.map(function (one) { return one instanceof Node ? one.cloneNode(true) : document.createTextNode(one); }));
  }

  // ---- the page's elements
  function sight(model, part) {
    var last = Math.max.apply(null, part.focus), count = part.queries.length, word = model.word.text;
    if (model.reads === "causal") {
      var seen = part.queries.slice(0, last).map(name).join(" ");
      return two("Causal: each token sees only what stands before it. “" + word + "” sees " + (last ? (last > 8 ? last + " tokens" : seen) + " and itself" : "only itself") + ": " + (last + 1) + " of " + count + ".",
        "单向（因果）：每个词元只看得到前面的内容。“" + word + "”只看得到" + (last ? (last > 8 ? "前面 " + last + " 个词元" : " " + seen + " ") + "和自己" : "自己") + "：" + count + " 个中的 " + (last + 1) + " 个。");
    }
    if (model.reads === "masked") return two("Both sides: each token sees all others. “" + word + "” sees all " + count + " tokens.",
      "双向：每个词元都看得到其余全部。“" + word + "”看得到全部 " + count + " 个词元。");
    return two("A translator: the encoder sees the whole source; the decoder sees what it has written, and the source.",
      "翻译模型：编码器看得到整句原文；解码器看得到自己已写的内容和原文。");
  }

  function notes(model, part) {
    var list = [], word = model.word;
    if (word.places.length > 1) list.push(two("“" + word.text + "” stands at " + word.places.length + " places; this is number " + word.occurrence + " (--occurrence).",
      "“" + word.text + "”出现在 " + word.places.length + " 处；这里是第 " + word.occurrence + " 处（--occurrence）。"));
    if (model.cut) list.push(two("Cut: the model reads the beginning only; " + model.cut + " tokens at the end of the text are left out.",
      "有截断：模型只读开头部分，文本末尾的 " + model.cut + " 个词元没有读。"));
    if (!part.whole) list.push(two("Cut: of more than " + facts.limits.full + " tokens not every weight is kept. A place of a map is the largest weight of " + part.bin[0] + " × " + part.bin[1] + " tokens; exact are the strongest links of the word in every head, and of every other token in the mean of the heads.",
      "有省略：超过 " + facts.limits.full + " 个词元时不再保存全部权重。图中一格是 " + part.bin[0] + " × " + part.bin[1] + " 个词元中的最大权重；所选词在每个头中最强的连接、其余词元在各头平均中最强的连接仍是精确值。"));
    if (model.window) list.push(two("Some layers look back " + model.window + " tokens at most (sliding window).", "部分层最多往回看 " + model.window + " 个词元（滑动窗口）。"));
    if (part.queries.some(function (piece) { return /[₀-₉]/.test(piece.text); })) list.push(two("₁ ₂ ₃: parts of one character whose bytes lie in several tokens.", "₁ ₂ ₃：一个字的字节分在几个词元里。"));
    return list.map(function (note) { return made("p", {class: "small soft"}, note); });
  }

  function chipsOf(part) {
    part.chips = part.queries.map(function (piece, i) {
      return made("button", {type: "button", class: piece.special ? "special" : null, on: {click: function () { choose(part, [i]); }}}, name(piece));
    });
    part.row = made("div", {class: "words" + (part.queries.length > 80 ? " long" : "")}, part.chips);
    return part.row;
  }

  function habitsOf(part) {
    var groups = {};
    part.layers.forEach(function (layer) { layer.heads.forEach(function (head) { (groups[head.habit] = groups[head.habit] || []).push(layer.layer + "." + head.head); }); });
    var rows = Object.keys(HABITS).filter(function (key) { return groups[key]; }).map(function (key) {
      var list = groups[key];
      return made("tr", {}, made("td", {}, two(HABITS[key][0], HABITS[key][1])), made("td", {}, list.length),
        made("td", {class: "left", style: {"white-space": "normal"}}, list.slice(0, 24).join(", ") + (list.length > 24 ? " …" : "")));
    });
    return made("details", {}, made("summary", {}, two("What each head does most (layer.head)", "每个头主要在看哪里（层.头）")), made("div", {class: "scroll"}, made("table", {}, rows)),
      made("p", {class: "small soft"}, two("A place counts as a head's habit when on average half of the look or more rests on it; “evenly” is an entropy of at least 0.9 of the greatest possible.",
        "平均一半以上的权重落在某处，就算这个头的习惯；“平均分布”指熵达到最大可能值的 0.9 以上。")));
  }

  function build(model, part) {
    part.keyPieces = part.keys || part.queries; part.heads = part.layers[0].heads.length; part.kept = {};
    part.layer = 0; part.head = -1; part.chosen = part.focus.slice(); part.cursor = null;
    part.grid = made("canvas", {tabindex: 0, role: "img", class: "grid", "aria-label": part.part + ": layers × heads"});
    part.large = made("canvas", {tabindex: 0, role: "img", class: "large", "aria-label": part.part + ": weights"});
    part.caption = made("p", {class: "caption"}); part.fan = made("div");
    var title = PARTS[part.part];
    part.box = made("div", {class: "part"}, title ? made("h3", {}, two(title[0], title[1])) : null, chipsOf(part), part.fan,
      made("div", {class: "maps"}, made("div", {}, made("p", {class: "caption soft"}, two("Layers from top to bottom; left the mean (x̄), then head 1, 2 …", "从上到下是各层；最左一列是平均（x̄），其后是第 1、2……个头")),
        part.grid), made("div", {}, part.caption, part.large)), habitsOf(part));
    parts.push(part); listen(part);
    return part.box;
  }

  facts.models.forEach(function (model) {
    var first = model.parts[0];
    var card = made("section", {class: "model"}, made("h2", {}, model.name), made("p", {}, sight(model, first)),
      model.translation === undefined ? null : made("p", {}, made("span", {class: "soft"}, two("Translation: ", "译文：")), model.translation),
      model.answer === undefined ? null : made("p", {}, made("span", {class: "soft"}, two("The classifier's answer: ", "分类器的回答：")), made("b", {}, model.answer.label || model.answer.value),
        model.answer.probability === undefined ? null : " " + (100 * model.answer.probability).toFixed(1) + " %"));
    document.getElementById("models").appendChild(card);
    model.parts.forEach(function (part) { card.appendChild(build(model, part)); });
    notes(model, first).forEach(function (note) { card.appendChild(note); });
  });
  view.redraw(function () { parts.forEach(update); });
  var waiting = 0;
  addEventListener("resize", function () { clearTimeout(waiting); waiting = setTimeout(function () { parts.forEach(update); }, 120); });
})();
