// Actions

async function postAction(path) {
  const response = await fetch(path, { method: 'POST', headers: requestHeaders({ 'x-aoai-lb-admin': '1' }), cache: 'no-store' });
  if (!response.ok) throw new Error(await errorMessageOf(response));
  return response.json().catch(() => ({}));
}

function showResult(level, what, lines = []) {
  updateAttribute($('result'), 'data-level', level);
  setText($('result-text'), what);
  updateList($('result-lines'), lines, 'text-item', line => line, (f, line) => setText(f.text, line));
  setVisible($('result'), true);
  announce([what, ...lines].join(' '));
}

function confirmAction(title, text, warning, yes, path, describeResult) {
  setText($('confirm-title'), title);
  setText($('confirm-text'), text);
  setText($('confirm-warning'), warning);
  setVisible($('confirm-warning'), warning !== '');
  setText($('confirm-error'), '');
  setText($('confirm-yes'), yes);
  $('confirm-yes').onclick = async () => {
    $('confirm-yes').disabled = true;
    setText($('confirm-error'), '');
    try {
      const result = describeResult(await postAction(path) ?? {});
      $('confirm-dialog').close();
      showResult(...result);
    } catch (problem) {
      setText($('confirm-error'), `Not done: ${problem.message}`);
    } finally {
      $('confirm-yes').disabled = false;
    }
  };
  $('confirm-dialog').showModal();
  $('confirm-no').focus(); // not by `autofocus`, which browsers apply only while the page loads
}

function confirmDrain(name, drains) {
  const path = `api/backends/${encodeURIComponent(name)}/${drains ? 'drain' : 'undrain'}`;
  if (!drains) return confirmAction(`Undrain ${name}?`, 'It receives new requests again.', '', 'Undrain', path, () => ['ok', `${name} is no longer drained.`]);
  const members = pool => objectsIn(pool.tiers).flatMap(tier => objectsIn(tier.members));
  const alone = objectsIn(latest?.pools).filter(pool => members(pool).some(member => member.backend === name) && members(pool).every(member => member.backend === name || member.state !== 'healthy'));
  const warning = alone.length ? `No other backend is healthy: ${alone.map(poolName).join(', ')}.` : '';
  confirmAction(`Drain ${name}?`, 'It receives no new requests until it is undrained. Requests in flight finish.', warning, 'Drain', path, done => {
    const stranded = textsIn(done.left_without_backend), flight = isKnown(done.in_flight) ? ` ${pluralize(done.in_flight, 'request')} in flight.` : '';
    const lines = [stranded.length && `Left without a backend: ${stranded.join(', ')}.`, nonEmptyText(done.save_problem) && `The drain ends with this process: ${done.save_problem}`].filter(Boolean);
    const homed = describeHomedRequests(done.resource);
    return [lines.length ? 'warn' : 'ok', `${name} is drained.${flight}`, homed ? [...lines, homed] : lines];
  });
}

function confirmReload() {
  confirmAction('Reload the configuration?', 'The file is read again. If it is invalid, the current configuration stays active.', '', 'Reload', 'api/reload', done => {
    const warnings = textsIn(done.warnings), upgrade = textsIn(done.needs_upgrade);
    const lines = [...textsIn(done.summary), ...upgrade.length ? [`takes effect with an upgrade: ${upgrade.join(', ')}`] : [], ...warnings.map(warning => `warning: ${warning}`)];
    return [warnings.length || upgrade.length ? 'warn' : 'ok', `The configuration was reloaded${isKnown(done.version) ? `: version ${formatCount(done.version)}` : ''}.`, lines];
  });
}
