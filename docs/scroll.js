/* The theme lets wide tables scroll inside a box that it adds in the browser; the keyboard has to reach it, too. */
addEventListener("load", () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
});
