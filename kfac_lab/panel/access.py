"""For those without a mouse or without eyes: what ipywidgets leaves out, added by the page itself.

A slider gets the name of its label, a picture the words beneath it; and JupyterLab's one-letter
shortcuts leave the keys of a drop-down and of a slider to them. Where a page runs no scripts of
outputs, everything else works as before.
"""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

__all__ = ["help_access"]

_CLASS = "kfac-lab-panel"
_SCRIPT = """
const mark = this;
const set = (e, name, value) => { if (e.getAttribute(name) !== value) e.setAttribute(name, value) };
const nameAll = root => {
  for (const slider of root.querySelectorAll('.widget-slider')) {
    const label = (slider.querySelector('.widget-label') || slider).textContent.trim();
    for (const handle of slider.querySelectorAll('[role=slider]')) set(handle, 'aria-label', label);
    const readout = slider.querySelector('.widget-readout');  // an integer's; others have a box
    if (readout) { set(readout, 'role', 'textbox'); set(readout, 'aria-label', label + ' value') }
    const box = slider.nextElementSibling?.querySelector('input[type=number]');
    if (box) set(box, 'aria-label', label + ' value');
  }
  for (const picture of root.querySelectorAll('img.widget-image')) {
    const words = picture.parentElement.querySelector('[role=note]');
    if (words) set(picture, 'alt', words.textContent.trim());
  }
};
const begin = tries => {
  const root = mark.closest('.kfac-lab-panel');
  if (root) {
    new MutationObserver(() => nameAll(root)).observe(root, {childList: true, subtree: true});
    nameAll(root);
  } else if (tries) setTimeout(begin, 50, tries - 1);
};
begin(200);
if (!window.kfacLabKeys) {
  window.kfacLabKeys = true;
  window.addEventListener('keydown', event => {
    const at = event.target;
    if (!at.matches || !at.matches('.kfac-lab-panel :is(select, [role=slider])')) return;
    const plain = !(event.ctrlKey || event.metaKey || event.altKey);
    at.toggleAttribute('data-lm-suppress-shortcuts', plain);
  }, true);
}
"""


def help_access(panel: widgets.Box) -> None:
    """Adds names and keys to the page wherever the panel is shown."""
    panel.add_class(_CLASS)
    begins = html.escape(_SCRIPT, quote=True)  # an image that cannot be: what follows is at once
    mark: Any = widgets.HTML(f'<img alt="" src="data:," onerror="{begins}">')
    mark.layout.display = "none"
    panel.children = (*panel.children, mark)
