// Nodes are created once and changed only if their content changes.

function setText(node, value) {
  if (node.shownText === value) return;
  node.shownText = node.textContent = value;
}

/** A number in a table; zeros are pale. */
function setNumber(node, value, format = formatCount) {
  setText(node, format(value));
  node.classList.toggle('zero', !(value > 0));
}

function updateAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function setVisible(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

function setBadge(node, [sign, text, level]) {
  if (!node.firstChild) {
    const glyph = document.createElement('span');
    updateAttribute(glyph, 'aria-hidden', 'true');
    node.append(glyph, document.createElement('span'));
  }
  setText(node.firstChild, `${sign} `);
  setText(node.lastChild, text);
  updateAttribute(node, 'data-level', level);
}

function setBarFraction(bar, part, start = 0) {
  const within = x => isKnown(x) ? Math.min(1, Math.max(0, x)) : 0;
  const scale = `${start ? `translateX(${(within(start) * 100).toFixed(1)}%) ` : ''}scaleX(${within(part).toFixed(3)})`;
  if (bar.scale === scale) return;
  bar.style.transform = bar.scale = scale;
}

/** A copy of a template, with its nodes by the value of `data-field`. */
function cloneTemplate(template) {
  const root = $(template).content.firstElementChild.cloneNode(true);
  const fields = { root };
  for (const node of [root, ...root.querySelectorAll('[data-field]')]) if (node.dataset.field) fields[node.dataset.field] = node;
  return fields;
}

/** Shows one child for each item, after a caption and the head of a table. Children are kept between updates, by the key of their item. */
function updateList(parent, items, template, keyOf, update) {
  const before = parent.kept ?? new Map(), now = new Map(), focused = parent.contains(document.activeElement) ? document.activeElement : null;
  for (const item of items) {
    let key = String(keyOf(item));
    while (now.has(key)) key += ' ';
    now.set(key, [before.get(key) ?? cloneTemplate(template), item]);
  }
  for (const [key, fields] of before) if (!now.has(key)) fields.root.remove();
  parent.kept = new Map();
  let next = parent.querySelector(':scope > :not(caption, thead)');
  for (const [key, [fields, item]] of now) {
    if (fields.root === next) next = next.nextElementSibling;
    else parent.insertBefore(fields.root, next);
    parent.kept.set(key, fields);
    update(fields, item);
  }
  // A node that moves loses the focus.
  if (focused && focused.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

function showPairs(parent, rows) {
  updateList(parent, rows.filter(row => row), 'fact-item', row => row[0], (f, [name, value]) => {
    setText(f.name, name);
    setText(f.value, value);
  });
}

/** A row that has details: they are created when they are first shown. `show` fills them. */
function setExpandable(f, template, label, show) {
  f.showDetails = show;
  updateAttribute(f.expand, 'aria-label', label);
  if (!f.isExpandable) {
    f.isExpandable = true;
    f.main.addEventListener('click', event => {
      const isOther = event.target.closest('a, button:not(.expand), input, select') || !event.target.closest('.expand') && String(getSelection());
      if (!isOther) toggleDetails(f, template, f.details.hidden);
    });
  }
  if (!f.details.hidden) f.showDetails(f.sheet);
}

function toggleDetails(f, template, visible) {
  if (!f.sheet) {
    f.sheet = cloneTemplate(template);
    f.slot.append(f.sheet.root);
  }
  if (visible) f.showDetails(f.sheet);
  setVisible(f.details, visible);
  updateAttribute(f.expand, 'aria-expanded', String(visible));
}

/** Shows the first items only, unless the button was pressed. */
function firstOf(items, most, button, renderAll) {
  const showsAll = button.getAttribute('aria-expanded') === 'true';
  setVisible(button, items.length > most);
  setText(button, showsAll ? `Show the first ${most} only` : `Show all ${formatCount(items.length)}`);
  button.onclick = () => {
    updateAttribute(button, 'aria-expanded', String(!showsAll));
    renderAll();
  };
  return showsAll ? items : items.slice(0, most);
}

// For each node that shows a countdown: when it ends.
const countdowns = new Map();

function setCountdown(node, ms) {
  if (!isKnown(ms)) {
    countdowns.delete(node);
    return setText(node, '');
  }
  // Counted from when the status arrived, since it may be shown again later.
  const until = statusReceivedAt + ms, before = countdowns.get(node);
  if (before === undefined || Math.abs(before - until) > 1500) countdowns.set(node, until);
  showRemaining(node);
}

function showRemaining(node) {
  const until = countdowns.get(node), left = until - Date.now();
  if (staleReason) setText(node, `until ${formatTime(until)}`);
  else setText(node, left > 0 ? `${formatDuration(Math.ceil(left / 1000))} left` : 'ends now');
}
