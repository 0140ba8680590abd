// What the responses to each client cost, the one first that has cost most in this month.

const MOST_COSTS = 5;

function showCosts(status) {
  const costs = status.costs && typeof status.costs === 'object' ? status.costs : null;
  const month = entry => Number(entry.month?.cost) || 0;
  const nameIn = entry => nonEmptyText(entry.client) ?? 'unknown clients';
  const matching = objectsIn(costs?.clients).filter(entry => matchesFilters(true, entry.client ?? '')).sort((a, b) => month(b) - month(a) || nameIn(a).localeCompare(nameIn(b)));
  const shown = firstOf(matching, MOST_COSTS, $('more-costs'), renderAgain);
  updateList($('cost-table'), shown, 'cost-row', nameIn, (f, entry) => {
    setText(f.name, nameIn(entry));
    setText(f.today, nonEmptyText(entry.today?.cost) ?? '–');
    setText(f.month, nonEmptyText(entry.month?.cost) ?? '–');
    setNumber(f.provisioned, entry.month?.provisioned);
    setNumber(f.without, entry.month?.without_cost);
  });
  setVisible($('cost-table'), shown.length > 0);
  setVisible($('cost-note'), costs !== null);
  const notes = [`Costs are in ${nonEmptyText(costs?.currency) ?? 'an unknown currency'}, of the requests that arrived today and in this month (UTC).`];
  if (nonEmptyText(costs?.not_saved)) notes.push(`The sums are forgotten when this process ends: ${costs.not_saved}`);
  setText($('cost-note'), costs === null ? '' : notes.join(' '));
}
