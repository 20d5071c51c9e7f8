"""The patterns by which `parser` reads an answer.

They are read in plain words: small letters without accents, but for 'é'. Only a letter that stands
alone keeps its case there, so `[A-Z]` is always such a letter; and a list of letters ('A e C') is a
row of `SEVERAL`.
"""

import re

SEVERAL = "\0"

OFFERED = r"(?:letra|alternativa|opcao|item|assertiva|option|choice|letter)"
NOUN = rf"(?:{OFFERED}|resposta|gabarito|answer)"
MATTER = (
    r"(?:diagnostico|hipotese|conduta|tratamento|terapia|terapeutica|exame|medida|procedimento"
    r"|abordagem|manejo|passo|causa|esquema|intervencao|estrategia|orientacao|medicamento|farmaco"
    r"|droga|diagnosis|treatment|management|drug|step|test|cause)"
)
RIGHT = (
    r"(?:correc?t[ao]|cert[ao]|adequad[ao]|apropriad[ao]|provavel|melhor"
    r"|correct|right|best|likely|appropriate)"
)
SUITED = rf"(?:{RIGHT}|indicad[ao]|recomendad[ao])"
NEGATION = (
    r"(?:nao|nem|nunca|jamais|tampouco|menos|exceto|entre|incorrec?t\w*|errad\w*|fals[ao]s?"
    r"|inadequad\w*|improv\w+|invalid\w*|descart\w*|elimin\w*|exclu\w*|contraindic\w*|not|isn"
    r"|never|neither|nor|wrong|incorrect|false|rule[sd]?\s+out|except|between|least)"
)
REASON = (
    r"(?:pois|porque|por\s+(?:ser|que)|ja\s+que|uma\s+vez|visto\s+que|dado\s+que|e\s+nao|que"
    r"|segundo|conforme|because|since|as|which)"
)
IS = (
    r"(?:é|sao|sera|seria|seja|(?:deve(?:ria)?|so\s+pode|parece)\s+ser|esta\s+na?"
    r"|is|would\s+be|should\s+be|must\s+be)"
)
CONNECTIVE = (
    r"(?:[eE]|mas|que|pois|logo|portanto|entao|assim|sim|apenas|somente|so|certeza|duvida"
    r"|acho|provavelmente|and|but|only)"
)

# A letter and its surroundings.
OPEN = r"[(\[{<\"'«“‘]{0,2}"
CLOSE = r"[)\]}>\"'»”’]"
ALONE = r"(?![\w+]|-\w)"  # behind a letter that is part of no word: not 'A+', not 'D-dímero'
CONSONANT = r"[B-DF-HJ-NP-Zb-df-hj-np-z]"
CLEAR = r"[A-Zb-df-np-z]"  # letters that are no word by themselves; 'a', 'e' and 'o' are
END = rf"\s*(?:$|\n|,?\s*\b{REASON}\b)|[!;]|{CLOSE}\s*(?:$|[\n.!;,])"
AFTER = re.compile(rf"{END}|[,:](?=\s)|\.(?!\w)|\s+[-–—(]|{CLOSE}|\s+[^\w\s?]{{1,2}}\s*(?:$|\n)")
LONELY = re.compile(r"\s*\.?\s*(?:$|\n)")
CLOSED = re.compile(CLOSE)
SPELT = re.compile(rf"{CLOSE}?\s*[:(–—-]|{CLOSE}\s*\w")  # the letter's text follows
SEPARATOR = re.compile(rf"{CLOSE}{{0,2}}\s*[.:,=(–—-]*\s*{OPEN}")
GENUS = re.compile(r"\.\s+[a-zà-ú]")  # 'E. coli', in the text as it was written

SINGLE = re.compile(r"(?<!\w)[A-Za-z](?!\w)")
CAPITAL = re.compile(r"[A-Z](?!\w)(?<!\w.)")  # in the text as it was written

VOWEL = r"[AEIO](?=\s*(?:[.,;:!?)\]/\n]|$|(?:e|ou|nem|and|or|sao|estao|nao|podem|foram|como)\b))"
MEMBER = rf"(?:{CONSONANT}|{VOWEL}|{NOUN}\s+{OPEN}[A-Za-z]){CLOSE}?{ALONE}"
LIST = re.compile(
    rf"(?<![\w-]){MEMBER}(?:[ \t]*(?:,[ \t]*(?:(?:e|ou|and|or)\b)?|/|&|\+"
    rf"|\b(?:e|ou|nem|and|or|nor)\b)[ \t]*(?:a[ \t]+)?{OPEN}{MEMBER})+"
    r"(?!\s+(?:esta|é|seria|is|nao\s+é)\b)"  # 'C, e a D está errada' lists nothing
)

# Cues: what a letter or a text stands behind; right behind it, or behind a link that follows.
LINKED = ("label", "matter", "quality")
LABEL = (
    rf"(?:{NOUN}(?!\s+{OPEN}{CLEAR}(?!\w))"  # 'a opção B é a C' labels nothing
    rf"|resp\.?|[rR]\.?(?=\s*:)|escolha|solucao|conclusao"
    rf"|(?:[aAoO]\s+(?:(?:unic[ao]|mais)\s+)?|the\s+(?:most\s+)?){SUITED}|{SUITED}(?=\s*:))(?!\w)"
)
CHOICE = (
    r"(?:(?:fico|ficaria|ficarei|escolh(?!a\b)\w+|opt[oa]\w*|marc(?:o|aria|arei)"
    r"|assinal(?:o|aria|arei)|voto|vou|iria|aposto|respond(?:o|eria)|selecion(?:o|aria)|prefiro"
    r"|diria|resta|sobra|chuto|seja|trata-se|correspond\w+|equivale|choose|pick|select"
    r"|(?:go|going)\s+with)(?:\s+(?:com|por|pel[ao]|em|n[ao]|d[aeo]|a(?=\s+\w\w)))?"
    r"|(?:acho|creio|acredito)\s+que|(?:think|believe)(?:\s+that)?)\s+"
)
CONCLUSION = (
    r"(?:(?:portanto|logo|assim(?:\s+sendo)?|entao|sendo\s+assim|d?n?es[st]a\s+forma"
    r"|des[st]e\s+modo|por\s+is[st]o|consequentemente|em\s+resumo|enfim|ou\s+seja|mas(?:\s+sim)?(?!\s+tambem)"
    r"|e\s+sim|therefore|thus|hence|so)\s*[,:]?\s+|[=-]>\s*|[→⇒➡]\s*)"
)
TENTATIVE = (
    r"(?:talvez|quem\s+sabe|possivelmente|(?<!so )pode(?:ria)?(?:\s+tambem)?\s+ser|perhaps|maybe"
    r"|(?:might|could|may)\s+be)(?:\s+seja)?\s+"
)
CUE = re.compile(
    rf"(?<![\w-])(?:(?P<tentative>{TENTATIVE})|(?P<choice>{CHOICE})|(?P<conclusion>{CONCLUSION})"
    rf"|(?P<label>{LABEL})|(?P<matter>{MATTER}\b)|(?P<quality>{SUITED}\b)"
    r"|(?P<clause>(?:é|it\s+is|(?:deve|so\s+pode)\s+ser)\b))"
)
DOUBT = re.compile(TENTATIVE)
BEGUN = re.compile(rf"(?s:.*)(?:^|[.;:,!?\n]|\b{CONNECTIVE}\s)\s*")  # what a clause begins behind
LINK = re.compile(
    r"(?P<point>[\"']?\s*(?::|=|→|⇒|➡|[=-]>|\s[-–—]\s)(?:\s*é\b)?)"
    rf"|\b(?P<conditional>seria|would\s+be)\b\s*:?|\b{IS}\b\s*:?"
    rf"|\be(?=\s+(?:a\s+)?(?:{OFFERED}\b|[B-Z]\b))"  # 'é' without its accent
)
REACH = 160  # characters from a label to its link
WHICH = re.compile(
    rf"\s*(?:é\s+)?{OPEN}"
    r"(?:(?:[aAoO]|the)\s+(?:(?:descrit|apresentad|propost|indicad|contid)[ao]\s+(?:n[ao]|em)\s+|d[ae]\s+)?)?"
    rf"(?P<noun>(?:de\s+)?{NOUN}\b\s*(?:(?:{SUITED}|{NOUN}|de|é|is|a)\b\s*|:\s*)*)?"
    rf"{OPEN}(?P<letter>[A-Za-z]|{SEVERAL}+){ALONE}"
)
BROKEN = re.compile(  # by which a label and a link do not belong together
    rf"\b(?:{NOUN}|{NEGATION}|talvez|possivelmente|perhaps|maybe)\b"
)
JUDGING = re.compile(rf"\b(?:{SUITED}|{IS})\b")

# What is said of a letter or of a text.
PRAISE = (
    rf"(?:(?P<one>(?:{IS}\s+(?:mesmo\s+)?(?:a|o|the)|como(?:\s+sendo)?(?:\s+[ao])?)\s+"
    rf"(?:unic[ao]\b|{NOUN}|(?:mais\s+|most\s+)?(?:{SUITED}|verdadeira|complet[ao]|coerente"
    r"|compativel)))"
    rf"|(?:esta|é|is)\s+(?:mais\s+|most\s+)?(?:{RIGHT}|verdadeir[ao])"
    r"|(?:apresenta|traz|contempla|descreve)\s+(?:\w+\s+){1,4}"
    r"(?:correc?t[ao]|adequad[ao]|indicad[ao]|recomendad[ao]))\b"
)
BETWEEN = (
    rf"(?:\s*\([^()\n]{{0,250}}\)|\s*,[^,.;\n]{{0,200}},"
    rf"|\s*[.:–—-]\s(?:(?!{NOUN}\b)[^.;\n]){{0,250}}?,?)??\s+"
)
NAMED = re.compile(rf".*\b{NOUN}\s+(?:{SUITED}\s+)?{OPEN}", re.DOTALL)  # before a letter
FREE = re.compile(rf".*(?:^|[.;:,!?\n]\s*|\b{CONNECTIVE}\s+)(?:[aA]\s+)?{OPEN}", re.DOTALL)
PRAISES = re.compile(rf"{CLOSE}?{BETWEEN}{PRAISE}")  # behind a letter
ONLY = re.compile(
    rf"\b(?:apenas|somente|so|only)\s+(?:[aAoO]\s+)?(?:{NOUN}\s+)?{OPEN}(?P<letter>{CLEAR})"
    rf"(?!\w){CLOSE}?\s+\w"
)
PRAISED = re.compile(
    rf"\b{IS}\s+(?:a|o|the)\s+(?:(?:{NOUN}|{MATTER}|\w+\s+de\s+escolha|\w+\s+\w*\s*{SUITED}"
    rf"|(?:mais\s+|most\s+)?{SUITED}))\b"
)
BESIDE = re.compile(rf"\((?:{NOUN}\s+)?(?P<letter>[A-Za-z])\)(?=\s*(?:[.,;\n]|$))")
MENTION = re.compile(
    rf"(?<!\w){NOUN}\s+(?:(?:correta|certa|de\s+letra)\s+)?"
    rf"{OPEN}(?P<letter>[A-Za-z]){ALONE}(?={END}|\.(?!\w))"
)
WITHIN = re.compile(r"\b(?:[nd]a|in|of) $")  # before 'alternativa B' in 'na alternativa B'
WEAK = re.compile(
    r"\b(?:trata-se|suger\w+|sugestiv\w+|compativ\w+|configura\w*|indica\w*|recomend\w+|dev\w+"
    r"|(?:inicia|usa|utiliza|administra|prescreve|faz)-se|estabelec\w+|exig\w+|requer\w*|aponta\w*|defin\w+|descrev\w+|caracteriz\w+|confirm\w+|usaria|faria"
    r"|prescreveria|administraria|solicitaria|é|sao|foi|seria|is|suggests?|consistent)\b"
    r"(?:\s+(?:com|de|d[ao]|por|que|-?se|ser|para|with))*|:"
)

# Letters that begin a line or a text.
LONE_LINE = re.compile(
    rf"^[^\w\n{SEVERAL}]*([A-Za-z]|{SEVERAL}+)[^\w\n{SEVERAL}+/?°%=:,–—−-]*$", re.MULTILINE
)
ITEM = re.compile(
    rf"^(?P<marks>[^\w\n{SEVERAL}]*)(?:(?:[aA]\s+)?{OFFERED}\s+)?{OPEN}(?P<letter>[A-Za-z])"
    rf"(?:{CLOSE}+|(?=\s*[.:]\s|\s+[-–—|=]\s))\s*[.:|=–—-]*\s*",
    re.MULTILINE,
)
OPENING = re.compile(
    rf"[^\w\n{SEVERAL}]*(?:(?:[aA]\s+)?{NOUN}\s+{OPEN}(?P<named>[A-Za-z]){CLOSE}?"
    rf"(?=[.:,]\s|\s+[-–—]\s|\)|\s*$)"
    rf"|(?P<closed>[A-Za-z])(?:[)\]]|(?=\.\s))"
    rf"|(?P<free>[A-Z])(?=:\s|\s+[-–—]\s|,\s+{REASON})|(?P<bare>[B-DF-HJ-NP-Z])(?=\s+{REASON}))"
)
APART = re.compile(rf"{CLOSE}|[.:,]\s|\s+[-–—(]")  # what may set a letter apart from its text
ANNOUNCES = re.compile(r":\s*\n")  # what a list stands behind
HAS_BRACKET = re.compile(r"(?<![\w(])([A-Z])\)")

# Where clauses begin and end, and what takes back or judges what they say.
BOUNDARY = re.compile(
    r"[.!?;\n,]|\b(?:mas|porem|contudo|but|e\s+sim"
    r"|e(?=\s+(?:[aoAO]|logo|portanto|assim|entao)\s))\b"
)
SENTENCE_END = re.compile(r"[.!?;\n]|$")
DENIAL = re.compile(rf"\b{NEGATION}\b")
CERTAINTY = re.compile(
    r"nao\s+(?:ha|tenho|resta\w*)\s+duvidas?|por\s+(?:exclus|elimina[cç])ao|(?:pelo|ao)\s+menos"
    r"|entre\s+(?:[ao]s|essas|estas)\s+(?:\w+\s+)?(?:alternativas|opcoes|listadas|apresentadas)"
)
_IF = r"(?<![\w-])(?:se|caso|if)\s+"
CONDITION = re.compile(
    _IF + r"(?:[aoAO]s?|ele|ela|houvesse|tivesse|estivesse|the|it|he|she|there)\b"
)
CONDITION_AFTER = re.compile(CONDITION.pattern + "|" + _IF + r"(?:nao\s+)?(?:foss|apresent)\w+")
HYPOTHESIS = re.compile(_IF + r"(?:\w+\s+){0,3}(?:for|estiver|houver|tiver|apresentar)\b")
VERDICT = re.compile(
    r"(?P<wrong>\b(?:incorrec?t\w*|errad\w*|fals[ao]|inadequad\w*|improvavel|invalid[ao]"
    r"|descartad[ao]|contraindicad\w*"
    r"|nao\s+(?:é|esta|seria|deve|ha|se|corresponde|explica|indicad\w+)"
    r"|incorrect|wrong|false|not)\b|[❌✗✘])"
    r"|(?P<right>(?:(?<=[.:;(|)–—-])|(?<=[.:;(|)–—-]\s))"
    r"(?:correc?t[ao]|cert[ao]|verdadeir[ao]|correct|true)\b|[✅✔☑]"
    rf"|\b(?:essa|esta|é|this|is)\s+(?:é\s+|is\s+)?(?:a|o|the)\s+(?:unic[ao]\s+)?"
    rf"(?:(?:{NOUN}|{MATTER})\s+)?(?:mais\s+|most\s+)?{RIGHT}\b)"
)
ENDS = re.compile(rf"\s*(?:[.,;:!)\]\n\"'»”(–—]|-\s|$|{REASON}\b)")  # what a whole text ends at
WHOLE = re.compile(r"[^\w\n?]*(?:\n|$)")

# What is no part of an answer's words.
THINKING = re.compile(r"<(think\w*|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL)
THOUGHT = re.compile(r".*</(?:think\w*|reasoning)>", re.DOTALL)
# Where a model's own turn ends, and where it goes on to a question that nobody put to it.
TURN_END = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|end|user)\|>|</s>|<end_of_turn>|\[INST\]"
    r"|^\W*(?:User|Usu[áa]rio|Human|Humano|Instruction|Instru[çc][ãa]o)\s*:",
    re.MULTILINE,
)
NEXT_QUESTION = re.compile(
    r"^[^\w\n]*(?:Quest[ãa]o|Pergunta|Question|Exerc[íi]cio)\b[^\n:.)-]{0,20}[:.)-]"
    r"|^[^\w\n]*(?:Pr[óo]xima|Next)\s+(?:quest[ãa]o|pergunta|question)\b"
    r"|^\s*\d+[.)]\s[^\n]*\?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
# A numbered alternative with its letter behind it: '4. **Ultrassonografia (D)**: correta'.
LETTER_BEHIND = re.compile(
    r"^(?P<number>\W*\d+[.)]\s*)(?P<text>[^\n:()]{2,120}?)\s*\((?P<letter>[A-Z])\)\s*:",
    re.MULTILINE,
)
ANSWER_TAG = re.compile(r"<(answer|resposta|final\w*)>(.*?)</\1>", re.DOTALL)
TAG = re.compile(r"</?[a-z]\w*\s*/?>")
MARKS = re.compile(r"~~.*?~~|[*`$]+|_(?<!\w_)_*|_+(?!\w)|\\[()\[\]]")
QUOTED = re.compile(r"^[#>\s]+", re.MULTILINE)
LATEX = re.compile(r"\\(?:text|math)\w*\s*\{([^{}]*)\}")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
