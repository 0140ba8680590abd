// Limits of clients: how much of each is used, the one first that is used most.

const MOST_LIMITS = 5;
const CLOSE_SHARE = 0.8;
const LIMIT_MODES = new Map([['enforce', 'Requests beyond these limits are refused.'], ['observe', 'Limits are only observed: no request is refused.']]);

function showLimits(status) {
  const limits = status.limits && typeof status.limits === 'object' ? status.limits : null;
  const all = objectsIn(limits?.clients).flatMap(client => objectsIn(client.limits).map(limit => ({ client, limit, share: shareUsedOf(limit) })));
  const matching = all.filter(({ client }) => matchesFilters(true, client.client)).sort((a, b) => (b.share ?? -1) - (a.share ?? -1));
  const shown = firstOf(matching, MOST_LIMITS, $('more-limits'), renderAgain);
  updateList($('limit-table'), shown, 'limit-row', ({ client, limit }) => JSON.stringify([client.client, limit.limit]), (f, { client, limit, share }) => {
    setText(f.name, nonEmptyText(client.client) ?? 'all clients');
    setText(f.limit, nonEmptyText(limit.limit) ?? 'unnamed');
    setText(f.class, nonEmptyText(client.class) ?? '–');
    const format = /(^|\.)cost_per_/.test(limit.limit ?? '') ? formatAmount : formatCount;
    setNumber(f.used, limit.used, format);
    setText(f.value, format(limit.value));
    setNumber(f.remaining, limit.remaining, format);
    // Rounded down, so that 100 % means that nothing is left.
    const percent = share === null ? '–' : `${formatCount(Math.floor(share * 100))} %`;
    setBadge(f.share, share >= 1 ? [LEVEL_SIGNS.warn, percent, 'warn'] : share >= CLOSE_SHARE ? [LEVEL_SIGNS.note, percent, 'note'] : ['', percent, 'ok']);
  });
  setVisible($('limit-table'), shown.length > 0);
  setVisible($('limits-note'), all.length > 0);
  const notes = [LIMIT_MODES.get(limits?.mode)];
  if (nonEmptyText(limits?.currency)) notes.push(`Limits by cost are in ${limits.currency}.`);
  if (nonEmptyText(limits?.budgets_not_saved)) notes.push(`The use of budgets is forgotten when this process ends: ${limits.budgets_not_saved}`);
  setText($('limits-note'), textsIn(notes).join(' '));
}

/** The part of a limit that is used; more than 1 if more is used than the limit. */
function shareUsedOf(limit) {
  return isKnown(limit.used) && isKnown(limit.value) && limit.value > 0 ? limit.used / limit.value : null;
}
