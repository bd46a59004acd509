"""What the unseen kinds are made of; in templates ``$a`` and ``$b`` are drawn names, ``$n`` and ``$k`` numbers."""

from __future__ import annotations

SQL = (
    "SELECT $a, $b FROM $table WHERE $a > $n ORDER BY $b DESC LIMIT $k;",
    "INSERT INTO $table ($a, $b) VALUES ($n, 'x$k');",
    "UPDATE $table SET $a = $n WHERE $b IS NOT NULL;",
    "SELECT COUNT(*), AVG($a) FROM $table GROUP BY $b HAVING COUNT(*) > $k;",
    "DELETE FROM $table WHERE $a IN (SELECT $b FROM orders WHERE total < $n);",
    "SELECT t.$a FROM $table t LEFT JOIN customers c ON t.$b = c.id;",
    "CREATE INDEX idx_${a}_$k ON $table ($a, $b);",
)
SQL_TABLES = ("customers", "orders", "products", "invoices", "payments")
SQL_COLUMNS = ("id", "name", "city", "created_at", "total", "status", "price", "stock", "amount", "due_date")

SHELL = (
    "find /var/$a -name '*.$b' -mtime +$k | xargs rm -f",
    "sudo systemctl restart $a.service && journalctl -u $a -n $n",
    'for f in *.$b; do gzip -9 "$$f" > /tmp/$a/$${f%.$b}.gz; done',
    "grep -rn '$a' ./src | awk '{print $$$k}' | sort -u | head -n $n",
    "export PATH=$$HOME/$a/bin:$$PATH; chmod +x ./$a.sh",
    "docker run --rm -v $$PWD:/$a -p $n:80 $a:latest",
    "tar -xzf $a-$k.$n.tar.gz -C /opt/$a --strip-components=1",
    "curl -sSL https://example.com/$a.$b | sed -e 's/$k/$n/g' >> ~/.${a}rc",
)
SHELL_NAMES = ("backup", "nginx", "deploy", "cache", "build", "mirror")
SHELL_ENDINGS = ("log", "txt", "csv", "conf")

HTML = (
    '<div class="card card-$n"><h2>$a</h2><p>From $k euros</p></div>',
    '<ul id="list$n"><li><a href="/shop/$k">$a</a></li></ul>',
    '<img src="/static/img$n.png" alt="$a" width="${k}0">',
    '<table><tr><td>$a</td><td align="right">$n.99</td></tr></table>',
    '<button type="submit" onclick="buy($n)">Buy $b</button><br>',
    '<span style="color: #a${k}f; margin: ${n}px">$b</span>',
)

C = (
    "static int ${a}_$n(const char *src, size_t len)\n{\n\tint i, acc = 0;\n\tfor (i = 0; i < len; i++)",
    "\t\tacc += src[i] & 0x$n;\n\treturn acc;\n}\n",
    "#define ${a}_MAX $n\nstruct $a {\n\tuint32_t flags;\n\tvoid *$b;\n};\n",
    "void $a(struct node **head, int v)\n{\n\tstruct node *p = malloc(sizeof(*p));\n\tif (!p)\n\t\texit($k);",
    "\tp->next = *head;\n\t*head = p;\n}\n",
    '#include <$a.h>\n\nint main(int argc, char **argv)\n{\n\tprintf("%d\\n", $b($n));\n\treturn 0;\n}\n',
)
C_NAMES = ("count", "copy", "merge", "parse", "swap", "scan")

GERMAN = (
    ("Der Hund", "Die Lehrerin", "Mein Nachbar", "Das kleine Kind", "Unsere Firma", "Der alte Zug", "Eine Freundin"),
    ("sucht", "findet", "bringt", "kauft", "vergisst", "beschreibt", "braucht", "zeigt"),
    ("den Schlüssel", "eine Zeitung", "das neue Buch", "die Straße", "keinen Kaffee", "viele Äpfel", "einen Brief"),
    ("im Garten", "nach der Arbeit", "am frühen Morgen", "ohne Grund", "für seine Mutter", "in der großen Stadt"),
    ("weil es heute regnet", "obwohl niemand zuhört", "damit alles schneller geht", "und geht dann nach Hause"),
)
FRENCH = (
    ("Le chien", "La voisine", "Mon frère", "Une petite fille", "Notre équipe", "Le vieux train", "Ce médecin"),
    ("cherche", "trouve", "apporte", "achète", "oublie", "décrit", "montre", "regarde"),
    ("la clé", "un journal", "le nouveau livre", "la rue", "du café", "quelques pommes", "une lettre"),
    ("dans le jardin", "après le travail", "tôt le matin", "sans raison", "pour sa mère", "dans la grande ville"),
    ("parce qu'il pleut", "même si personne n'écoute", "afin que tout aille plus vite", "puis rentre à la maison"),
)
ENGLISH = (
    ("The dog", "The teacher", "My neighbour", "A small child", "Our choir", "The old train", "A friend of mine"),
    ("looks for", "finds", "brings", "paints", "forgets", "describes", "needs", "shows"),
    ("the key", "a newspaper", "the new book", "the street", "no coffee", "a few apples", "a letter"),
    ("in the garden", "after work", "early in the morning", "without reason", "for his mother", "in the big city"),
    ("because it rains today", "although nobody listens", "so that time goes faster", "and then goes home"),
)
REPEATED = (
    *("yes", "please", "time", "again", "data", "house", "value", "water", "number", "help", "order", "the", "error"),
    *("return", "good", "work", "story", "paper", "window", "river", "blue", "forever", "never", "result", "token"),
)
ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L")),
    *((40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)
LEET = str.maketrans("aeiostlgAEIOSTLG", "4310571943105719")
CYRILLIC = ("аеиоуыя", "бвгдзклмнпрстхч")
GREEK = ("αεηιοω", "βγδζθκλμνπρστφχψ")
ARABIC = ("اوي", "بتجحدرسعفقكلمنه")
