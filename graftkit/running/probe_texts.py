"""Short texts in several languages, scripts and notations, on which a result is compared with its source.

They are fed to tokenizers (does old text still split as it did?) and to models (are the outputs still the same?). Each
is one to three sentences, so that a forward pass over all of them stays cheap.
"""

from __future__ import annotations

ENGLISH = (
    "The ferry leaves at half past six, and whoever misses it sleeps on the island. "
    "We didn't mind: the café was open, and nobody's watch agreed with anybody else's."
)
SCIENCE = (
    "Isocitrate dehydrogenase converts isocitrate to alpha-ketoglutarate; "
    "a preprint (doi:10.1101/2020.01.02) reports k = 4.7 × 10⁻³ s⁻¹ at 37 °C."
)
GERMAN = (
    "Der Müller prüft jeden Morgen die Wasserstandsanzeige. "
    "Große Straßenbahnhaltestellen heißen übrigens selten nach Größe."
)
FRENCH = "L'été dernier, nous avons goûté à « l'œuf parfait » ; le garçon n'en revenait pas !"
CHINESE = "昨天晚上下了一场大雨,院子里的桂花落了一地。今天早上,孩子们把它们扫进了竹篮。"
JAPANESE = "駅前のパン屋は朝七時に開きます。カレーパンがいちばん人気で、十分で売り切れることもある。"
ARABIC = "وصل القطار متأخرًا ساعتين، لكنّ المسافرين كانوا يغنّون على الرصيف."
HINDI = "नदी के किनारे एक पुराना बरगद है। बच्चे हर शाम उसकी जड़ों पर झूलते हैं।"
RUSSIAN = "Вчера почтальон перепутал письма. Теперь соседи переписываются — и вполне довольны!"
EMOJI = "Done! 🎉🎉 The 👩‍🔬 team (🇧🇷 + 🇯🇵) gave it 👍🏽 — see you on the 🌙… ❤️"
PYTHON = (
    "def mean(xs: list[float]) -> float:\n"
    '    """Average of xs; 0.0 when empty."""\n'
    "    return sum(xs) / len(xs) if xs else 0.0  # no NaN\n"
)
JAVASCRIPT = (
    "const load = async (url) => {\n"
    "\tconst res = await fetch(`${url}?page=1&size=50`);\n"
    "\treturn res.ok ? res.json() : null; // <- may throw\n"
    "};"
)
JSON_TEXT = '{"id": 42, "tags": ["a-b", "c_d"], "nested": {"ok": true, "ratio": -1.5e-07, "none": null}}'
MARKUP = (
    "<s>[INST] <<SYS>>Answer briefly.<</SYS>> What is <b>2 < 3</b>? [/INST]\n"
    "<|user|> tool_call(name='search') <!-- note --> </s>"
)
NUMBERS = "1234567890 0.001 1,000,000.00 3.14159e+10 0xDEADBEEF 2024-02-29T23:59:59Z v1.2.3-rc.4 +49 (30) 555-0199"
WHITESPACE = "one  two   three\t\tfour\n\n\nfive\r\n  six\u00a0seven\u3000eight \n\t \n  trailing   "

#: Every probe text, in a fixed order.
PROBE_TEXTS: tuple[str, ...] = (
    ENGLISH,
    SCIENCE,
    GERMAN,
    FRENCH,
    CHINESE,
    JAPANESE,
    ARABIC,
    HINDI,
    RUSSIAN,
    EMOJI,
    PYTHON,
    JAVASCRIPT,
    JSON_TEXT,
    MARKUP,
    NUMBERS,
    WHITESPACE,
)
