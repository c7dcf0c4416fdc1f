// What every explanation's page shares: its facts, elements in both languages, tooltips, colours of weights.
var view = (function () {
  "use strict";
  var tipBox = null;

  // An element: made("td", {class: "left", on: {click: f}}, child, "text", …); text is never read as HTML.
  function made(tag, options) {
    var element = document.createElement(tag);
    Object.keys(options || {}).forEach(function (key) {
      if (key === "on") {
        Object.keys(options.on).forEach(function (name) { element.addEventListener(name, options.on[name]); });
      } else if (key === "style") {
        Object.keys(options.style).forEach(function (name) { element.style.setProperty(name, options.style[name]); });
      } else if (options[key] !== null && options[key] !== undefined) {
        element.setAttribute(key, options[key]);
      }
    });
    for (var i = 2; i < arguments.length; i++) append(element, arguments[i]);
    return element;
  }

  function append(element, child) {
    if (Array.isArray(child)) child.forEach(function (one) { append(element, one); });
    else if (child instanceof Node) element.appendChild(child);
    else if (child !== null && child !== undefined) element.appendChild(document.createTextNode(String(child)));
  }

  // The same in both languages; the page's toggle shows one of them.
  function two(en, zh) {
    return [made("span", {class: "t-en", lang: "en"}, en), made("span", {class: "t-zh", lang: "zh"}, zh)];
  }

  function language() { return document.getElementById("lang-zh").checked ? "zh" : "en"; }

  // Calls back now and whenever the language or the light changes: for what is drawn on a canvas.
  function redraw(draw) {
    ["lang-en", "lang-zh"].forEach(function (id) { document.getElementById(id).addEventListener("change", draw); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  // A token as a reader can see it: blanks and line ends as signs, no control characters.
  function readable(text) {
    var shown = text.replace(/^ (?=[^ ])/, "").replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥").replace(/\s/g, "␣");
    return shown.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "\ufffd") || "␣";
  }

  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  // The colour of a weight 0 … 1 over the page's card: the accent, thicker with the weight.
  function heat(weight) {
    var hex = colour("--accent").slice(1), parts = [0, 2, 4].map(function (i) { return parseInt(hex.substr(i, 2), 16); });
    return "rgba(" + parts.join(",") + "," + Math.max(0, Math.min(1, weight)) + ")";
  }

  // A canvas that is sharp on this screen; the context draws in CSS pixels.
  function sharp(canvas, width, height) {
    var ratio = Math.min(window.devicePixelRatio || 1, 3), context = canvas.getContext("2d");
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = width + "px"; canvas.style.height = height + "px";
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return context;
  }

  var tip = {
    // Show content (text, elements or a list of them) beside a point of the window.
    show: function (x, y, content) {
      if (!tipBox) { tipBox = made("div", {class: "tip", role: "status"}); document.body.appendChild(tipBox); }
      tipBox.replaceChildren(); append(tipBox, content); tipBox.hidden = false;
      var box = tipBox.getBoundingClientRect(), wide = document.documentElement.clientWidth;
      tipBox.style.left = Math.max(4, Math.min(x + 12, wide - box.width - 4)) + "px";
      tipBox.style.top = (y + 16 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 16) + "px";
    },
    hide: function () { if (tipBox) tipBox.hidden = true; },
    // Content for an element, on hover, focus and tap.
    on: function (element, content) {
      function at(event) {
        var box = element.getBoundingClientRect(), pointed = event.clientX || event.clientY;
        tip.show(pointed ? event.clientX : box.left, pointed ? event.clientY : box.bottom - 12, content());
      }
      ["mousemove", "focus", "click"].forEach(function (name) { element.addEventListener(name, at); });
      ["mouseleave", "blur"].forEach(function (name) { element.addEventListener(name, tip.hide); });
      return element;
    }
  };
  addEventListener("scroll", tip.hide, {passive: true});
  addEventListener("keydown", function (event) { if (event.key === "Escape") tip.hide(); });

  return {facts: JSON.parse(document.getElementById("facts").textContent), made: made, two: two, language: language,
    redraw: redraw, readable: readable, colour: colour, heat: heat, sharp: sharp, tip: tip};
})();
