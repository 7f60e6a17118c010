"""The style of a report in HTML: every rule within `.robustad`, so that it can stand in a notebook."""

PAGE = "body{margin:0;background:#f6f7f9}@media (prefers-color-scheme:dark){body{background:#0f1115}}"

STYLE = """
.robustad{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--dim:#667080;--rule:#dfe3e8;--code:#f4f5f7;--bad:#c62828;
--badpale:#fde7e7;--good:#1b7f4b;--amber:#a05a00;--amberpale:#fff0d6;--blue:#3567b5;--violet:#7a4fb5;
max-width:1060px;margin:0 auto;padding:18px 24px;box-sizing:border-box;background:var(--paper);color:var(--ink);
font:14px/1.5 system-ui,sans-serif;text-align:left}
@media (prefers-color-scheme:dark){.robustad{--paper:#171a20;--ink:#e4e7ec;--dim:#98a2b3;--rule:#31363f;--code:#1f232b;
--bad:#ff7b72;--badpale:#4a2226;--good:#56d08f;--amber:#f0b056;--amberpale:#463312;--blue:#78a6f2;--violet:#b794f6}}
.robustad h1{font-size:20px;margin:0 0 4px}.robustad h2{font-size:16px;margin:26px 0 8px}
.robustad h3{font-size:14px;margin:0 0 6px}.robustad p{margin:4px 0}
.robustad .dim{color:var(--dim);font-weight:normal}.robustad .bad{color:var(--bad)}.robustad .good{color:var(--good)}
.robustad code,.robustad pre{font:12.5px/1.5 ui-monospace,monospace}
.robustad table{border-collapse:collapse;width:100%}.robustad th{color:var(--dim);font-weight:normal}
.robustad td,.robustad th{text-align:left;padding:2px 14px 2px 0;vertical-align:middle;background:none;border:0}
.robustad tr{background:none}.robustad td{white-space:nowrap}.robustad td.name{white-space:normal;overflow-wrap:anywhere}
.robustad .bar{position:relative;display:block;width:200px;height:11px;background:var(--code)}
.robustad .bar i{position:absolute;top:0;height:100%;background:var(--blue)}
.robustad .bar i.wrong{background:var(--bad)}.robustad .bar i.own{background:var(--dim);opacity:.75}
.robustad .bar i.opposed{opacity:.5}.robustad .bar b{position:absolute;top:-2px;height:15px;border-left:1px solid var(--ink)}
.robustad .card{border:1px solid var(--rule);border-left:4px solid var(--bad);border-radius:4px;padding:10px 14px;
margin:10px 0}.robustad .card.note{border-left-color:var(--amber)}
.robustad pre{background:var(--code);color:inherit;padding:6px 0;margin:8px 0;overflow-x:auto}
.robustad pre span{display:block;width:max-content;min-width:100%;padding:0 10px;box-sizing:border-box}
.robustad pre .found{background:var(--badpale);box-shadow:inset 3px 0 var(--bad)}
.robustad pre .committed{background:var(--amberpale);box-shadow:inset 3px 0 var(--amber)}
.robustad pre .made{box-shadow:inset 3px 0 var(--blue)}
.robustad pre .shown{box-shadow:inset 3px 0 var(--violet)}.robustad pre u{color:var(--dim);text-decoration:none}
.robustad summary{cursor:pointer;color:var(--dim)}.robustad .wide{overflow-x:auto}
.robustad svg.map text{font:11px system-ui,sans-serif;fill:var(--dim)}.robustad svg.map .strong{fill:var(--ink)}
.robustad svg.map .axis{stroke:var(--dim)}.robustad svg.map .file{stroke:var(--rule)}
.robustad svg.map .made{fill:var(--blue)}.robustad svg.map .opposed{opacity:.5}
.robustad svg.map .lost{fill:var(--bad);opacity:.45}
.robustad svg.map .found{fill:var(--bad)}.robustad svg.map .committed{fill:var(--amber)}
.robustad svg.map .shown{fill:var(--violet)}.robustad svg.map .number{fill:var(--paper);font-weight:bold}
.robustad .key span{margin-right:16px}.robustad .key i{display:inline-block;width:10px;height:10px;margin-right:5px}
"""
