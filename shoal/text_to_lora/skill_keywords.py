"""The skills that are known, each with the words that name it: a table, so listing skills loads no torch."""

from __future__ import annotations

import re

# Regular expressions, matched where a word begins, in lower case.
KEYWORDS = {
    "code_generation": (
        r"cod(e|er|ing|ebase)\b|program(s|mer|mers|ming)?\b|script(s|ing)?\b|python|javascript|typescript|java\b"
        r"|rust\b|golang|kotlin|haskell|c\+\+|c#|sql\b|html|css\b|react\b|django|flask|apis?\b|endpoint|regex"
        r"|functions?\b|software|unit tests?|bash|backend|front-?end|app\b|website|compiler|implement"
        r"|boilerplate|refactor|dockerfile|terraform|json\b|plugin|bot\b"
    ),
    "mathematics": (
        r"math|algebra|calculus|geometr|arithmetic|equation|theorem|proofs?\b|prove\b|integral|derivative"
        r"|probabilit|statistic|fraction|percent|trigonometr|eigenvalue|combinatori|polynomial|calculat|numeric"
        r"|number theory|quantitative|odds\b|sums?\b|logarithm"
    ),
    "reasoning": (
        r"reason|logic|deduc|infer|puzzle|riddle|brain ?teaser|syllog|step by step|critical thinking"
        r"|common ?sense|conclu|premise|fallac|analog(y|ies)|strateg|chain of thought"
    ),
    "creative_writing": (
        r"creative|stor(y|ies|yteller|ytelling)\b|poem|poet|novel|fiction|lyric|haiku|limerick|sonnet|rhyme|verse"
        r"|tales?\b|screenplay|dialogue|character|plot\b|fantasy|imaginat|fable|narrative|ballad|song|scene\b"
        r"|playwright|myth"
    ),
    "analysis": (
        r"analy[sz]|sentiment|insight|trend|evaluat|interpret|compar|classif|theme|pattern|assess|critique|survey"
        r"|outlier|anomal|reviews?\b|feedback|swot"
    ),
    "summarization": (
        r"summar|tl;?dr|condense|abstracts?\b|gist|key points|main points|digest|recap|shorten|bullet|boil"
        r"|nutshell|takeaway|minutes\b|short version|abridge|brief\b"
    ),
    "translation": (
        r"translat|interpreter|bilingual|multilingual|locali[sz]|subtitle|english|french|german|spanish|italian"
        r"|portuguese|dutch|polish|turkish|russian|chinese|japanese|korean|arabic|hindi|greek|latin\b|swedish"
        r"|mandarin|vietnamese|language"
    ),
    "question_answering": (
        r"question|answer|faq|q&a|qa\b|trivia|quiz|explain|customer support|help ?desk|knowledge|what is"
        r"|what's|who (is|was)|tell (me|people|them) (about|what)|facts\b|factual|ask\b|chatbot|tutor"
        r"|comprehension|teach"
    ),
    "debugging": (
        r"debug|bugs?\b|fix(es|ing)?\b|error|crash|traceback|stack ?trace|exception|troubleshoot|fault"
        r"|diagnos|fail(s|ing|ure|ures|ed)?\b|broken|leak|deadlock|wrong|why (does|is|do)|root cause|segfault"
        r"|not work|doesn't work|syntax error|issue"
    ),
    "optimization": (
        r"optimi[sz]|performance\b|faster|speed|slow|latency|efficien|memory (use|usage)|reduce|throughput"
        r"|profil|tuning|cheaper|bottleneck|scal(e|ing|able)|compress|cost|route|schedul|quick"
    ),
}
SKILLS = tuple(KEYWORDS)
KEYWORD_PATTERNS = tuple(re.compile(rf"\b({pattern})") for pattern in KEYWORDS.values())
