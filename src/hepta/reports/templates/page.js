(function () {
  "use strict";
  var en = document.getElementById("lang-en"), zh = document.getElementById("lang-zh");
  function told() { document.documentElement.lang = zh.checked ? "zh" : "en"; }
  var wanted = location.hash === "#zh" || (location.hash !== "#en" && /^zh/i.test(navigator.language || ""));
  (wanted ? zh : en).checked = true;
  told();
  en.addEventListener("change", told);
  zh.addEventListener("change", told);
})();
