(function () {
  "use strict";
  var facts = view.facts, made = view.made, two = view.two, tip = view.tip, positions = facts.positions;
  var SVG = "http://www.w3.org/2000/svg", ROW = 24, LEFT = 40, TOP = 26, WIDE = 82, rows = facts.layers + 1;
  var chosen = positions.length - 1, cursor = rows - 1;

  function svg(tag, options, text) {
    var element = document.createElementNS(SVG, tag);
    Object.keys(options).forEach(function (key) { element.setAttribute(key, options[key]); });
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function name(piece) { return piece.special === "bos" || piece.special === "eos" ? "‹" + piece.special + "›" : view.readable(piece.text); }
  function token(position) { return name(facts.tokens[position.place]); }
  function layer(l) { return l ? two("layer " + l, "第 " + l + " 层") : two("embedding", "词向量"); }
  function fitted(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    while (text.length > 1 && context.measureText(text + "…").width > width) text = text.slice(0, -1);
    return text + "…";
  }

  // ---- the table: only the columns in sight are drawn
  var canvas = made("canvas", {tabindex: 0, role: "img", "aria-label": "layers × positions"});
  var inner = made("div", {}, canvas), strip = made("div", {class: "strip"}, inner);

  function draw() {
    var width = strip.clientWidth || 340, height = TOP + rows * ROW + 2, from = strip.scrollLeft;
    WIDE = Math.max(82, Math.min(150, Math.floor((width - LEFT - 2) / positions.length)));
    inner.style.width = Math.max(width, LEFT + positions.length * WIDE + 2) + "px";
    var context = view.sharp(canvas, width, height), ink = view.colour("--ink"), paper = view.colour("--paper");
    var soft = view.colour("--soft"), card = view.colour("--card");
    context.textBaseline = "middle";
    var first = Math.max(0, Math.floor(from / WIDE)), last = Math.min(positions.length, Math.ceil((from + width) / WIDE) + 1);
    for (var i = first; i < last; i++) {
      var x = LEFT + i * WIDE - from, position = positions[i];
      context.textAlign = "center"; context.fillStyle = i === chosen ? view.colour("--accent") : soft;
      context.font = (i === chosen ? "700 " : "") + "12px system-ui, sans-serif";
      context.fillText(fitted(context, token(position), WIDE - 6), x + WIDE / 2, TOP / 2);
      for (var l = 0; l < rows; l++) {
        var best = position.top[l][0], y = TOP + l * ROW;
        context.fillStyle = view.heat(best[1]); context.fillRect(x + 1, y + 1, WIDE - 2, ROW - 2);
        context.fillStyle = best[1] > 0.55 ? paper : ink;
        context.font = (best[0] === position.answer ? "700 " : "") + "12px system-ui, sans-serif";
        context.fillText(fitted(context, view.readable(best[0]), WIDE - 8), x + WIDE / 2, y + ROW / 2 + 1);
      }
      if (i === chosen) {
        context.strokeStyle = view.colour("--accent"); context.lineWidth = 1.5; context.strokeRect(x + 0.5, TOP + 0.5, WIDE - 1, rows * ROW - 1);
        context.strokeStyle = ink; context.strokeRect(x + 1.5, TOP + cursor * ROW + 1.5, WIDE - 3, ROW - 3);
      }
    }
    context.fillStyle = card; context.fillRect(0, 0, LEFT, height);
    context.fillStyle = soft; context.textAlign = "right"; context.font = "11px system-ui, sans-serif";
    for (var n = 0; n < rows; n++) context.fillText(n ? n : view.language() === "zh" ? "词向量" : "emb.", LEFT - 5, TOP + n * ROW + ROW / 2 + 1);
  }

  function at(event) {
    var box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    var i = Math.floor((x + strip.scrollLeft - LEFT) / WIDE), l = Math.floor((y - TOP) / ROW);
    return x >= LEFT && i >= 0 && i < positions.length && l >= 0 && l < rows ? [i, l] : null;
  }

  function told(i, l) {
    var position = positions[i];
    return [made("div", {}, layer(l), " · ", token(position), " · KL ", made("b", {}, position.kl[l].toFixed(4)), " ", two("nats", "奈特")),
      made("table", {}, position.top[l].map(function (pair) {
        return made("tr", {}, made("td", {}, view.readable(pair[0])), made("td", {}, made("b", {}, pair[1].toFixed(4))));
      }))];
  }

  function choose(i, l) { chosen = i; cursor = l; draw(); charts(); }
  function scrollTo(i) {
    var x = i * WIDE, room = strip.clientWidth - LEFT;
    if (x < strip.scrollLeft) strip.scrollLeft = x; else if (x + WIDE > strip.scrollLeft + room) strip.scrollLeft = x + WIDE - room;
  }
  canvas.addEventListener("mousemove", function (event) { var place = at(event); if (place) tip.show(event.clientX, event.clientY, told(place[0], place[1])); else tip.hide(); });
  canvas.addEventListener("click", function (event) {
    var place = at(event);
    if (place) { choose(place[0], place[1]); tip.show(event.clientX, event.clientY, told(place[0], place[1])); }
  });
  canvas.addEventListener("keydown", function (event) {
    var step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(positions.length - 1, chosen + step[0])), Math.max(0, Math.min(rows - 1, cursor + step[1])));
    scrollTo(chosen); draw();
    var box = canvas.getBoundingClientRect(), content = told(chosen, cursor), line = document.getElementById("said");
    tip.show(box.left + LEFT + chosen * WIDE - strip.scrollLeft, box.top + TOP + cursor * ROW, content);
    line.textContent = view.readable(positions[chosen].top[cursor][0][0]) + " " + positions[chosen].top[cursor][0][1];
  });
  ["mouseleave", "blur"].forEach(function (leave) { canvas.addEventListener(leave, tip.hide); });
  strip.addEventListener("scroll", function () { tip.hide(); draw(); });

  // ---- curves over the layers: of the chosen position, and the mean of all
  var box = made("div", {class: "charts"}), caption = made("p", {class: "caption"});

  function curve(key, most, digits) {
    var width = 380, height = 190, left = 34, bottom = 22, one = positions[chosen][key].slice(1);  // the embedding is told in words
    var average = one.map(function (_, l) { return positions.reduce(function (sum, p) { return sum + p[key][l + 1]; }, 0) / positions.length; });
    var top = most || Math.max(1e-6, Math.max.apply(null, one), Math.max.apply(null, average));
    function x(l) { return left + l * (width - left - 12) / Math.max(1, one.length - 1); }
    function y(v) { return height - bottom - (height - bottom - 12) * v / top; }
    function path(values) { return values.map(function (v, l) { return (l ? "L" : "M") + x(l).toFixed(1) + " " + y(v).toFixed(1); }).join(""); }
    var picture = svg("svg", {viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": key});
    [0, 0.5, 1].forEach(function (share) {
      picture.appendChild(svg("path", {class: "axis", d: "M" + left + " " + y(top * share) + "H" + (width - 8)}));
      picture.appendChild(svg("text", {x: left - 5, y: y(top * share) + 4, "text-anchor": "end"}, (top * share).toFixed(digits)));
    });
    var every = Math.ceil(rows / 10);
    for (var l = 0; l < one.length; l += every) picture.appendChild(svg("text", {x: x(l), y: height - 6, "text-anchor": "middle"}, l + 1));
    if (positions.length > 1) picture.appendChild(svg("path", {class: "all", d: path(average)}));
    picture.appendChild(svg("path", {class: "one", d: path(one)}));
    one.forEach(function (v, l) {
      var dot = svg("circle", {cx: x(l), cy: y(v), r: rows > 20 ? 2.6 : 3.6, tabindex: 0});
      picture.appendChild(tip.on(dot, function () { return [layer(l + 1), ": ", made("b", {}, v.toFixed(4))]; }));
    });
    return picture;
  }

  function charts() {
    var position = positions[chosen], last = position.top[rows - 1][0];
    box.replaceChildren(
      made("figure", {}, curve("kl", 0, 1), made("figcaption", {}, two("KL(final ‖ layer) in nats, layer by layer: how far from the answer; 0 at the end (embedding: " + position.kl[0].toFixed(1) + ")",
        "各层的 KL(最终 ‖ 该层)，单位奈特：离最终答案还有多远；末层为 0（词向量：" + position.kl[0].toFixed(1) + "）"))),
      made("figure", {}, curve("answer_probability", 1, 1), made("figcaption", {}, two("Probability of the final answer in each layer", "最终答案在各层的概率"))));
    var where = facts.reads === "masked" ? two("At " + token(position), "在 " + token(position) + " 处") : two("After “" + token(position) + "”", "读完“" + token(position) + "”之后");
    caption.replaceChildren.apply(caption, where.concat(two(" the model's answer is ", "，模型的答案是 "), [made("b", {}, view.readable(position.answer)), " (" + (100 * last[1]).toFixed(1) + " %)"],
      positions.length > 1 ? two(". Dashed: mean of all positions.", "。虚线：所有位置的平均。") : []));
  }

  var card = document.getElementById("lens");
  [made("h2", {}, facts.name), facts.translation === null ? null : made("p", {}, made("span", {class: "soft"}, two("Translation: ", "译文：")), facts.translation),
    strip, caption, box].forEach(function (child) { if (child) card.appendChild(child); });
  view.redraw(function () { draw(); charts(); });
  strip.scrollLeft = 1e9; draw();
  var waiting = 0;
  addEventListener("resize", function () { clearTimeout(waiting); waiting = setTimeout(draw, 120); });
})();
