"""The style of a report's page, and with it the colours of its charts: light, dark, narrow, wide and on paper.

One text without a link to anything. Series' colours are told apart by colour-blind readers in both schemes (after Okabe
& Ito, 2008); charts have markers and patterns beside them.
"""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d2329; --muted: #6a737d; --grid: #e3e5e2; --soft: #f2f3f0; --accent: #0b62a4;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5479b; --c4: #8a6d00; --c5: #3d9fd8; --c6: #6b4fa0;
  --c7: #9aa0a6; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #15191d; --ink: #e4e7ea; --muted: #98a2ac; --grid: #2c333a; --soft: #1d2328; --accent: #79b8f2;
  --c0: #58aef0; --c1: #ff8f4d; --c2: #3ccf9f; --c3: #e58fcf; --c4: #e3c04a; --c5: #9bd3f7; --c6: #b39ddb;
  --c7: #7d868f; } }
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial,
  sans-serif; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; font-weight: 650; }
h2 { font-size: 1.2rem; margin: 0 0 .4rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
section { margin-top: 2.2rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); }
section section { margin-top: 1.4rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; } a:hover, a:focus { text-decoration: underline; }
p { margin: .3rem 0 .7rem; max-width: 48rem; overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: .87rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--soft); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 650; line-height: 1.25; }
.tile span { color: var(--muted); font-size: .82rem; display: block; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: .8rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.block { display: grid; grid-template-columns: minmax(0, 1fr); gap: .6rem 2rem; margin: .8rem 0 1.4rem; }
figure { margin: 0; min-width: 0; }
figure svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: inherit; } svg * { stroke-linejoin: round; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); gap: 1rem 1.5rem;
  margin: .8rem 0 1.4rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; color: var(--muted); padding: .2rem 0; font-size: .87rem; }
caption span { display: inline-block; max-width: calc(100vw - 2.5rem); position: sticky; left: 0; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 500; white-space: normal; overflow-wrap: anywhere; min-width: 8.5rem;
  max-width: 18rem; padding-left: 0; }
.words { text-align: left; white-space: normal; min-width: 9rem; }
td small, th small { display: block; font-weight: 400; color: var(--muted); font-size: .8rem; }
.shade { background: color-mix(in srgb, var(--c2) calc(var(--share) * 55%), transparent); }
tr.sure > * { font-weight: 650; }
.verdict { color: var(--muted); }
summary { cursor: pointer; color: var(--accent); }
@media (min-width: 62rem) { .block:not(.wide):not(.plain) { grid-template-columns: 31.5rem minmax(0, 1fr); } }
@media (max-width: 45rem) { .wide figure { overflow-x: auto; } .wide figure svg { min-width: 36rem; max-width: none; } }
@media print { html { font-size: 11px; } body { max-width: none; padding: 0; } nav { display: none; }
  figure, tr, .tiles { break-inside: avoid; } h2, h3, caption { break-after: avoid; } .scroll { overflow: visible; }
  figure svg { max-height: 16rem; } th, td, th:first-child { white-space: normal; padding: .2rem .3rem; min-width: 0; }
  table { font-size: 9px; } thead th { overflow-wrap: anywhere; } section { margin-top: 1rem; }
  .panels { grid-template-columns: 1fr 1fr; }
  .shade, .tile { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .block:not(.wide):not(.plain) { grid-template-columns: minmax(0, 1fr); } }
"""
