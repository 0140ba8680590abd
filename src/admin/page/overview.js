// The state of the whole, as the server judges it, its problems, and the figures of the last minute.

const MOST_PROBLEMS = 5;

function render(status) {
  const steps = timelineOf(status);
  setText($('version'), nonEmptyText(status.build?.version) ?? '');
  showService(status);
  announceChanges(status);
  if (document.hidden) return;
  for (const id of ['figures', 'timeline', 'backends', 'trouble', 'pools', 'clients', 'operations']) setVisible($(id), true);
  showFigures(status, steps);
  showPlots(steps);
  showBackends(status);
  showTrouble(status);
  showPools(objectsIn(status.pools), spillingIn(status));
  showQueue(queueOf(status));
  showCaches(objectsIn(status.pools));
  showClients(objectsIn(status.clients));
  showLimits(status);
  showCosts(status);
  showObjects(status);
  showShared(status);
  showOperations(status);
  updateTip();
}

function showService(status) {
  const service = status.service ?? {}, [sign, level, meaning] = serviceLookOf(service.state);
  showHeadline(sign, level, nonEmptyText(service.state) ?? 'unknown');
  const lasted = secondsSince(service.since);
  setText($('since'), lasted === null ? '' : `since ${formatTime(service.since)}, for ${formatDuration(lasted)}`);
  const problems = objectsIn(service.problems), isOver = problems.length === 0 && (level === 'bad' || level === 'warn');
  setText($('meaning'), isOver ? 'no problem at the moment; the state gets better after 30 s without one' : meaning);
  const backends = new Set(objectsIn(status.backends).map(nameOf));
  updateList($('problems'), firstOf(problems, MOST_PROBLEMS, $('more-problems'), renderAgain), 'problem-item', problem => problem.subject, (f, problem) => {
    const [problemSign, problemLevel] = serviceLookOf(problem.state), subject = nonEmptyText(problem.subject) ?? 'unnamed', isBackend = backends.has(subject);
    updateAttribute(f.root, 'data-level', problemLevel);
    setText(f.sign, problemSign);
    setText(f.word, `${nonEmptyText(problem.state) ?? 'unknown'}: `);
    setVisible(f.link, isBackend);
    setVisible(f.subject, !isBackend);
    setText(isBackend ? f.link : f.subject, subject);
    f.link.onclick = () => revealBackend(subject);
    setText(f.text, nonEmptyText(problem.text) ?? '–');
  });
  showNotices(status);
}

/** What is no problem of the service, but has to be known: the process, and what waits for an upgrade. */
function showNotices(status) {
  const process = status.process ?? {}, notices = [], upgrade = textsIn(status.configuration?.needs_upgrade);
  if (process.stopping === true) notices.push(['bad', `This process is stopping: ${pluralize(status.in_flight, 'request')} still in flight`]);
  else if (process.ready === false) notices.push(['bad', 'This process is not ready']);
  if (process.replaced === true) notices.push(['note', 'Another process has taken over; this one finishes its requests']);
  const refused = describeRefusals(status);
  if (refused) notices.push(['warn', refused]);
  if (nonEmptyText(process.drains_not_saved)) notices.push(['note', `Drains end with this process: ${process.drains_not_saved}`]);
  if (nonEmptyText(status.affinity?.not_saved)) notices.push(['note', `Ids of stored objects are forgotten when this process ends: ${status.affinity.not_saved}`]);
  if (nonEmptyText(status.traces?.failing_since)) notices.push(['warn', `Traces are not delivered since ${formatTime(status.traces.failing_since)}: ${nonEmptyText(status.traces.last_error) ?? 'unknown'}`]);
  if (upgrade.length) notices.push(['note', `Takes effect with an upgrade: ${upgrade.join(', ')}`]);
  updateList($('notices'), notices, 'notice-item', notice => notice[1], (f, [level, text]) => {
    updateAttribute(f.root, 'data-level', level);
    setText(f.sign, LEVEL_SIGNS[level]);
    setText(f.text, text);
  });
}

const LEAST_REFUSED = 10;

/** That most requests of the last minute were refused for what clients send, which is no problem of the backends. */
function describeRefusals(status) {
  const minutes = objectsIn(status.refusals).map(entry => entry.last_minute?.refused ?? {});
  const [refused, ...counts] = [['401', '403', '404'], ['401'], ['403'], ['404']].map(keys => minutes.flatMap(minute => keys.map(key => minute[key])).filter(isKnown).reduce((a, b) => a + b, 0));
  const line = status.timeline ?? {}, steps = Math.round(60 / (line.step_seconds > 0 ? line.step_seconds : 5)) + 1;
  const requests = Math.max(refused, Array.isArray(line.requests) ? sum(line.requests, -steps, undefined) ?? 0 : 0);
  if (refused < LEAST_REFUSED || refused * 2 < requests) return null;
  const byStatus = ['401', '403', '404'].map((key, place) => `${key}: ${formatCount(counts[place])}`).join(', ');
  return `${formatCount(refused)} of ${formatCount(requests)} requests of the last minute were refused for their key, deployment or path (${byStatus})`;
}

function showHeadline(sign, level, headline, title = headline) {
  setText($('level-sign'), sign);
  setText($('headline-text'), headline);
  updateAttribute($('overview'), 'data-level', level);
  const documentTitle = `${sign} ${title} – aoai-lb`;
  if (document.title !== documentTitle) document.title = documentTitle;
}

const sum = (row, from, to) => row.slice(from, to).reduce((all, x) => isKnown(x) ? (all ?? 0) + x : all, null);

/** The timeline without its last step, which is not over yet. */
function timelineOf(status) {
  const line = status.timeline ?? {}, step = isKnown(line.step_seconds) && line.step_seconds > 0 ? line.step_seconds : 5;
  const row = name => Array.isArray(line[name]) ? line[name].slice(0, -1) : [];
  const minute = name => sum(row(name), -Math.round(60 / step), undefined);
  const latest = name => row(name).slice(-Math.round(60 / step)).findLast(isKnown) ?? null;
  return { step, row, minute, latest, until: new Date(line.until ?? NaN).getTime() };
}

function showFigures(status, { step, row, minute, latest }) {
  const requests = minute('requests'), steps = row('requests').slice(-Math.round(60 / step)).filter(isKnown).length;
  const rate = isKnown(requests) ? requests / (steps * step) : null;
  const tokens = isKnown(minute('input_tokens')) ? minute('input_tokens') + (minute('output_tokens') ?? 0) : null;
  const part = n => isKnown(n) && requests > 0 && n > 0 ? `${formatCount(n)} (${formatPercent(n / requests)})` : formatCount(n);
  const exact = (...names) => names.map(name => `${name}: ${formatCount(minute(name.replace(' ', '_')))}`).join(', ');
  const figures = [
    ['In flight', formatCount(status.in_flight), 'Requests that have not ended.'],
    ['Requests per s', isKnown(rate) ? rate.toFixed(rate < 10 ? 1 : 0) : '–', `Requests that ended in the last minute, per second; ${formatCount(requests)} in all.`],
    ['Failed in 1 min', part(minute('failed')), 'Requests of the last minute whose client got a 5xx, a response that broke off, or none; and their share.'],
    ['429 in 1 min', part(minute('throttled')), 'Requests of the last minute whose client got 429; and their share.'],
    ['Failovers in 1 min', formatCount(minute('failovers')), 'Attempts of the last minute that followed another attempt of the same request.'],
    ['First byte p50', formatMillis(latest('p50_ms')), `Half of the requests of the last ${step} s had their first byte in less than this.`],
    ['First byte p95', formatMillis(latest('p95_ms')), `95 % of the requests of the last ${step} s had their first byte in less than this.`],
    ['Tokens in 1 min', formatCompact(tokens), `Tokens of the requests that ended in the last minute; ${exact('input tokens', 'output tokens')}.`],
    ['Since the start', formatCount(status.settled), 'Requests that ended since the start of this process.'],
  ];
  const { responses, realtime } = status.websockets ?? {};
  if (responses > 0 || realtime > 0) figures.splice(1, 0, ['WebSockets', formatCount((responses ?? 0) + (realtime ?? 0)), `Open WebSockets: ${formatCount(responses)} of /responses, which are in flight during their turns only, and ${formatCount(realtime)} realtime.`]);
  if (queueOf(status)) figures.splice(1, 0, ['In the queue', formatCount(waitingIn(queueOf(status))), 'Requests that wait because no backend is free. They are in flight, too.']);
  updateList($('figures'), figures, 'figure-item', figure => figure[0], (f, [name, value, meaning]) => {
    updateAttribute(f.name, 'data-tip', 'figure');
    updateAttribute(f.value, 'data-tip', 'figure');
    setText(f.name, name);
    setText(f.value, value);
    f.name.tip = f.value.tip = meaning;
  });
}

// Announcements for screen readers: each change of state once, at most every four seconds.

let lastAnnouncement = null, lastAnnouncedAt = 0, announcementPrefix = '';

function announce(what) {
  $('announcer').textContent = what;
  lastAnnouncedAt = Date.now();
}

function announceChanges(status) {
  const headline = `${nonEmptyText(status.service?.state) ?? 'unknown'}`;
  // Throttling comes and goes all the time.
  const states = new Map(objectsIn(status.backends).map(backend => [nameOf(backend), backend.state === 'cooling' ? 'healthy' : lookOf(backend.state)[1]]));
  const signature = JSON.stringify([[...states], headline]);
  if (staleReason || lastAnnouncement?.signature === signature && !announcementPrefix || lastAnnouncement && Date.now() - lastAnnouncedAt < 4000) return;
  const changed = [...states].filter(([name, state]) => lastAnnouncement && lastAnnouncement.states.get(name) !== state).map(([name, state]) => `${name}: ${state}`);
  const news = changed.length > 3 ? [`${changed.length} backends changed`] : changed;
  const worst = objectsIn(status.service?.problems)[0];
  const cause = worst && nonEmptyText(worst.subject) && headline !== lastAnnouncement?.headline ? [`${worst.subject}: ${nonEmptyText(worst.text) ?? ''}`] : [];
  announce([announcementPrefix, `The service is ${headline}`, ...news, ...cause].filter(nonEmptyText).join('. '));
  lastAnnouncement = { signature, states, headline };
  announcementPrefix = '';
}
