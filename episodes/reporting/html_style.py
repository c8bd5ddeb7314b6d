"""How the page of a report looks: light and dark, on a desk and on a phone, where each row of a table is a card."""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1b1b; --paper: #fff; --soft: #f3f3f0; --line: #c9c9c4; --good: #00664a; --bad: #a33f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e4; --paper: #161718; --soft: #232526; --line: #4a4d4f; --good: #55d6ab; --bad: #ff9c66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.verdict { font-size: 1.15rem; font-weight: 600; max-width: 55rem; }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.key div { background: var(--soft); padding: .75rem; border-radius: .4rem; }
.key dt { font-weight: 400; font-size: .875rem; } .key dd { font-size: 1.35rem; font-weight: 600; }
.key small { display: block; font-size: .8rem; font-weight: 400; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; min-width: 0; }
pre, .scroll { overflow-x: auto; } pre, code { font: .875em/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; border-radius: .4rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td.name { text-align: left; white-space: normal; }
caption { text-align: left; padding: .3rem 0; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 1rem 0; } .panels img { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption, .small { font-size: .9rem; }
.alarms { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
.alarms li { background: var(--soft); padding: .75rem; border-radius: .4rem; font-size: .875rem; }
.alarms img { display: block; max-width: 100%; margin-bottom: .5rem; image-rendering: pixelated; }
summary { cursor: pointer; padding: .35rem 0; }
@media (max-width: 40rem) {
  dl.facts { grid-template-columns: 1fr; } dl.facts dd { margin-bottom: .5rem; }
  table, caption, tbody, tr, td { display: block; width: 100%; } thead { display: none; }
  tr { background: var(--soft); border-radius: .4rem; padding: .5rem .75rem; margin-bottom: .75rem; }
  tbody th:first-child { display: block; position: static; background: none; padding: 0 0 .25rem; font-size: 1rem; }
  td, td.name { display: flex; justify-content: space-between; gap: 1rem; padding: .3rem 0; text-align: right;
    white-space: normal; }
  td::before { content: attr(data-label); text-align: left; }
  tr > td:last-child { border-bottom: 0; }
}
"""
