// Backends: one line each, worst first, with details on request.

/** A row moves down only after it has been better for this long. */
const BETTER_AFTER = 30000;
/** Rows stay where they are for this long after the operator has used one. */
const CALM_AFTER_USE = 15000;

const heldRanks = new Map();
let tableUsedAt = 0, shownOrder = [];

/** The worst rank of the last half minute, so that rows do not jump while a backend cools down again and again. */
function steadyRankOf(backend) {
  const name = nameOf(backend), rank = rankOf(backend), held = heldRanks.get(name);
  if (held && held.rank < rank && Date.now() < held.until) return held.rank;
  heldRanks.set(name, { rank, until: Date.now() + BETTER_AFTER });
  return rank;
}

function inOrder(backends) {
  const ranks = new Map(backends.map(backend => [backend, steadyRankOf(backend)]));
  const sorted = [...backends].sort((a, b) => ranks.get(a) - ranks.get(b));
  const places = new Map(shownOrder.map((name, place) => [name, place]));
  const isInUse = Date.now() - tableUsedAt < CALM_AFTER_USE && backends.every(backend => places.has(nameOf(backend)));
  if (isInUse) sorted.sort((a, b) => places.get(nameOf(a)) - places.get(nameOf(b)));
  shownOrder = sorted.map(nameOf);
  return sorted;
}

function matchesFilters(isUnhealthy, ...words) {
  const filter = $('filter').value.trim().toLowerCase();
  return (isUnhealthy || !$('only-unhealthy').checked) && (!filter || words.some(word => String(word ?? '').toLowerCase().includes(filter)));
}

/** Shows a text in place of an empty table or list. */
function showEmpty(node, rows, all, what) {
  setVisible(node, rows === 0);
  setVisible(node.previousElementSibling, rows > 0);
  setText(node, all === 0 ? `No ${what}s.` : $('only-unhealthy').checked && !$('filter').value ? `All ${what}s are healthy.` : `No ${what} matches the filter.`);
}

function showBackends(status) {
  const backends = objectsIn(status.backends), spilling = spillingIn(status);
  let shown = 0;
  updateList($('backend-table'), inOrder(backends), 'backend-row', nameOf, (f, backend) => {
    const visible = matchesFilters(!isHealthy(backend), backend.name, backend.endpoint, ...objectsIn(backend.deployments).map(deployment => deployment.name));
    setVisible(f.root, visible);
    if (!visible) return;
    shown += 1;
    showBackend(f, backend, spilling.has(backend.name));
  });
  setText($('shown-count'), backends.length ? `${formatCount(shown)} of ${formatCount(backends.length)}` : '');
  showEmpty($('no-backends'), shown, backends.length, 'backend');
}

function showBackend(f, backend, isSpilling) {
  const minute = backend.last_minute ?? {}, total = backend.counters ?? {}, state = nonEmptyText(backend.state);
  const look = lookOf(state, isSpilling), parts = unavailablePartsOf(backend);
  f.root.toggleAttribute('data-calm', isHealthy(backend));
  setBadge(f.state, state === 'healthy' && parts.length ? ['◑', look[1], isSpilling ? 'note' : 'warn'] : look);
  setText(f.name, nameOf(backend));
  setText(f.tier, `${formatCount(backend.tier)}${isKnown(backend.weight) && backend.weight !== 1 ? ` ×${formatCount(backend.weight)}` : ''}`);
  f.tier.tip = `Tier ${formatCount(backend.tier)}, weight ${formatCount(backend.weight)}.`;
  setBarFraction(f['share-bar'], minute.share);
  setText(f.share, formatPercent(minute.share));
  const oldest = isKnown(backend.oldest_attempt_seconds) ? ` The oldest has waited for ${formatDuration(backend.oldest_attempt_seconds)}.` : '';
  setNumber(f.flight, backend.in_flight);
  f.flight.tip = `${formatCount(backend.in_flight)} now.${oldest}`;
  setNumber(f.attempts, minute.attempts);
  f.attempts.tip = `${formatCount(backend.attempts)} started since the start.`;
  setNumber(f.throttled, minute.throttled);
  f.throttled.tip = `${formatCount(total.throttled)} since the start.`;
  setNumber(f.failed, minute.failed);
  f.failed.tip = `${formatCount(total.failed)} since the start.`;
  setNumber(f.p50, minute.p50_ms, formatMillis);
  setNumber(f.p95, minute.p95_ms, formatMillis);
  const outOfOrder = state === 'healthy' ? parts.map(part => `${part.name}: ${lookOf(part.state)[1]}`).join(', ') : '';
  setCountdown(f.left, backend.until_ms);
  setText(f.reason, nonEmptyText(backend.reason) ?? outOfOrder);
  f['reason-cell'].tip = f.reason.textContent && `${f.reason.textContent}${nonEmptyText(backend.since) ? `\nSince ${formatTime(backend.since)}.` : ''}`;
  setExpandable(f, 'backend-details', `${nameOf(backend)}, details`, sheet => showBackendDetails(sheet, backend));
}

function showBackendDetails(sheet, backend) {
  const state = nonEmptyText(backend.state), minute = backend.last_minute ?? {}, total = backend.counters ?? {}, error = backend.last_error;
  const credential = objectsIn(latest?.credentials).find(entry => entry.backend === backend.name);
  const lasted = secondsSince(backend.since);
  showPairs(sheet.facts, [
    ['State', `${state ?? '–'}${nonEmptyText(backend.reason) ? `: ${backend.reason}` : ''}`],
    lasted !== null && ['Since', `${formatTime(backend.since)}, for ${formatDuration(lasted)}`],
    nonEmptyText(backend.until) && ['Until', formatTime(backend.until)],
    ['Last error', error && typeof error === 'object' ? describeError(error) : error === null ? 'none' : '–'],
    ['Endpoint', nonEmptyText(backend.endpoint) ?? '–'],
    ['Objects', describeObjectsOf(backend.name)],
    ['Tier, weight', `${formatCount(backend.tier)}, ${formatCount(backend.weight)}`],
    ['In flight', `${formatCount(backend.in_flight)}${isKnown(backend.oldest_attempt_seconds) ? `; the oldest has waited for ${formatDuration(backend.oldest_attempt_seconds)}` : ''}`],
    ['Last minute', `${formatCount(minute.attempts)} attempts (${formatPercent(minute.share)} of all): ${formatCount(minute.throttled)} throttled, ${formatCount(minute.failed)} failed; p50 ${formatMillis(minute.p50_ms)}, p95 ${formatMillis(minute.p95_ms)}`],
    ['Since the start', `${formatCount(backend.attempts)} attempts: ${['answered', 'throttled', 'failed', 'refused', 'client_gone'].map(key => `${formatCount(total[key])} ${key.replace('_', ' ')}`).join(', ')}`],
    credential && ['Credential', describeExpiry(credential)],
  ]);
  showQuota(sheet, backend);
  const drains = state !== 'drained';
  setVisible(sheet.drain, nonEmptyText(backend.name) !== null && state !== 'disabled');
  setText(sheet.drain, drains ? 'Drain …' : 'Undrain …');
  updateAttribute(sheet.drain, 'aria-label', `${drains ? 'Drain' : 'Undrain'} ${nameOf(backend)}`);
  sheet.drain.onclick = () => confirmDrain(backend.name, drains);
}

/** An error in the backend's own words. */
function describeError(error) {
  const what = [...new Set([isKnown(error.status) ? String(error.status) : null, nonEmptyText(error.code)])].filter(Boolean).join(' ');
  const text = [what, nonEmptyText(error.message)].filter(Boolean).join(': ') || 'unknown';
  return nonEmptyText(error.at) ? `${text} (${formatTime(error.at)})` : text;
}

function showQuota(sheet, backend) {
  const deployments = objectsIn(backend.deployments), names = new Set(deployments.map(deployment => deployment.name));
  const operations = unavailablePartsOf(backend).filter(part => !names.has(part.name));
  const order = item => nonEmptyText(item.state) && item.state !== 'healthy' ? 0 : 1;
  const items = [...operations, ...deployments].sort((a, b) => order(a) - order(b));
  updateList(sheet.deployments, items, 'quota-item', nameOf, (g, item) => {
    setText(g.name, nameOf(item));
    setVisible(g.state, item.state !== 'healthy');
    setBadge(g.state, lookOf(nonEmptyText(item.state)));
    setCountdown(g.left, item.until_ms);
    const details = [], left = isKnown(item.remaining_tokens) && item.limit_tokens > 0 ? item.remaining_tokens / item.limit_tokens : null;
    const part = isKnown(left) ? atLeastZero(left) : isKnown(item.utilization) ? 1 - item.utilization : null;
    if (isKnown(item.remaining_tokens)) details.push(`${formatCompact(item.remaining_tokens)} of ${formatCompact(item.limit_tokens)} tokens`);
    if (isKnown(item.remaining_requests)) details.push(`${formatCompact(item.remaining_requests)} of ${formatCompact(item.limit_requests)} requests`);
    if (isKnown(item.utilization)) details.push(`${formatPercent(item.utilization)} utilized`);
    if (nonEmptyText(item.reason)) details.unshift(item.reason);
    setVisible(g.bar, isKnown(part));
    setBarFraction(g.fill, part);
    updateAttribute(g.bar, 'data-level', part < 0.1 ? 'bad' : part < 0.25 ? 'warn' : 'ok');
    setText(g.details, details.join(', ') || 'quota unknown');
    const reported = [['tokens', item.remaining_tokens], ['requests', item.remaining_requests]].filter(([, value]) => isKnown(value));
    updateAttribute(g.details, 'data-tip', 'quota');
    g.details.tip = reported.length ? `As the backend reported: ${reported.map(([what, value]) => `${value} ${what}`).join(', ')} remaining in this minute.` : '';
  });
  setText(sheet.none, items.length ? '' : 'none yet');
}

/** Opens the details of a backend and goes to it. */
function revealBackend(name) {
  const fields = [...$('backend-table').kept?.values() ?? []].find(f => f.name.textContent === name);
  if (!fields) return;
  if (fields.root.hidden) {
    $('filter').value = '';
    $('only-unhealthy').checked = false;
    renderAgain();
  }
  if (fields.details.hidden) toggleDetails(fields, 'backend-details', true);
  tableUsedAt = Date.now();
  fields.expand.focus({ preventScroll: true });
  fields.root.scrollIntoView({ block: 'nearest' });
}
