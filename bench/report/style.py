"""The look of the page, light and dark."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --paper: #fff; --line: #d8dde3;
  --bar: #4c78a8; --floor: #c0392b; --l1: #b85c1e; --l2: #2f7d5c; --l3: #9a3f98; --l4: #80621c; --l5: #b03a2e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4b0; --paper: #14171b; --line: #333a43; --bar: #6f9bd1; --floor: #ff7b6b;
    --l1: #f0a06a; --l2: #63c49a; --l3: #d58bd3; --l4: #d3b15e; --l5: #ff8a7c }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; border-top: 1px solid var(--line); padding-top: 1rem }
p.from, figcaption, summary { color: var(--soft); font-size: .875rem; margin: .25rem 0 }
nav a { display: inline-block; margin: 0 1.25rem .25rem 0 }
a { color: var(--bar) }
figure { margin: 1rem 0; overflow-x: auto }
svg { display: block; width: 100%; min-width: 36rem; max-width: 48rem; height: auto; font: 12px system-ui, sans-serif }
svg text { fill: var(--ink) }
.label, .value { text-anchor: end }
.tick { text-anchor: middle }
.bar { fill: var(--bar) }
.spread { stroke: var(--ink); stroke-width: 1.5 }
.floor { stroke: var(--floor); stroke-width: 2.5 }
.axis { fill: none; stroke: var(--line) }
.line { fill: none; stroke: currentColor; stroke-width: 2 }
.dot { fill: currentColor }
.l0 { color: var(--bar) } .l1 { color: var(--l1) } .l2 { color: var(--l2) }
.l3 { color: var(--l3) } .l4 { color: var(--l4) } .l5 { color: var(--l5) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
td.text, th.text { text-align: left }
"""
