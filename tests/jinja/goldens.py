"""Writes golden.json: the output of jinja2, set up as in transformers, for a table of templates and for public chat templates.

Usage: python goldens.py CHAT_TEMPLATES_DIR  (pip install jinja2; needs no network)
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2000, 2, 29, 12, 34, 56)

CONTEXT = {
    "n": None, "t": True, "i": 7, "neg": -7, "x": 2.5, "s": "Hello World", "e": "", "u": "straße é",
    "l": [3, 1, 2], "nested": [[1, 2], [3]], "d": {"b": 1, "a": [1, 2], "c": None},
    "rows": [{"n": "x", "v": 2}, {"n": "y", "v": 1}, {"n": "z", "v": 2}],
    "words": ["b", "A", "c", "a"], "ml": "one\r\ntwo\n\nthree", "pad": "  a b  ",
}

EXPRESSIONS = r"""
n is iterable
s is iterable
l is iterable
d is iterable
i is iterable
gone is iterable
n is sequence
s is sequence
l is sequence
d is sequence
i is sequence
gone is sequence
n is string
s is string
d is mapping
l is mapping
n is mapping
t is number
i is number
x is number
t is integer
i is integer
x is integer
x is float
i is float
t is boolean
i is boolean
t is true
i is true
t is sameas true
n is none
gone is none
gone is defined
n is defined
gone is undefined
i is odd
i is even
i is divisibleby 7
i is divisibleby(2)
s is lower
s is upper
i is in [7, 8]
'H' is in s
i is eq 7
i is ne 7
i is gt 3
i is lessthan 3
i is ge 7
raise_exception is callable
s is callable
'upper' is filter
'nope' is filter
'odd' is test
s is escaped
'%s' % s
'%s and %s' % (s, i)
'%d' % i
'%05d|%-5d|%+d' % (i, i, i)
'%x %X %o' % (255, 255, 8)
'%.2f' % x
'%8.3f|' % x
'%e' % x
'%g %g' % (x, 1e10)
'%r' % s
'%s' % n
'%s' % l
'%s' % t
'%%' % ()
'100%%' % ()
'%(a)s-%(b)d' % {'a': 'q', 'b': 3}
'%c' % 'x'
'%5s|%-5s|' % ('a', 'b')
'%.2s' % 'abcdef'
'%s' % 'a' ~ 'b'
'a%s' % 'b' + 'c'
'%s' % 'a'|upper
'%s' % s.lower()
'%s' % d['b']
'%s%s' % (1,)
'%d' % 'x'
i % 3
neg % 3
7.5 % 2
i % 0
2 * i % 4
(i + 1) % 3
'%s' % (i % 4)
s.capitalize()
s.casefold()
u.casefold()
s.center(15, '*')
s.center(15)
'ab'.center(5, '-')
s.ljust(13, '.')
s.rjust(13, '.')
'7'.zfill(3)
'-7'.zfill(4)
'+7'.zfill(4)
'abc'.zfill(2)
s.count('l')
s.count('')
s.count('l', 4)
s.find('o')
s.find('o', 5)
s.find('o', 5, 6)
s.find('zz')
s.rfind('o')
s.rfind('o', 0, 6)
s.index('o')
s.index('zz')
s.rindex('o')
s.startswith('Hell')
s.startswith(('x', 'H'))
s.startswith('World', 6)
s.endswith('World')
s.endswith(('x', 'd'))
s.endswith('Hello', 0, 5)
s.swapcase()
s.title()
"they're bill's".title()
s.upper()
u.upper()
s.lower()
s.islower()
'abc1'.islower()
s.isupper()
s.istitle()
'Hello world'.istitle()
''.istitle()
'12'.isdigit()
'²'.isdigit()
'½'.isdigit()
'12'.isdecimal()
'²'.isdecimal()
'½'.isnumeric()
''.isdigit()
'ab1'.isalnum()
'ab'.isalpha()
' \t'.isspace()
'ab'.isascii()
u.isascii()
''.isascii()
'a_1'.isidentifier()
'1a'.isidentifier()
'ab'.isprintable()
'a\n'.isprintable()
pad.strip()
pad.lstrip()
pad.rstrip()
'xxaxx'.strip('x')
'xyaxy'.strip('yx')
pad.strip(none)
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.split(sep=',')
' a  b '.split()
' a  b  c '.split(none, 1)
' a  b  c '.split(maxsplit=1)
'a,b,c'.split(',', -1)
''.split()
''.split(',')
'a,b,c'.rsplit(',', 1)
'a,b,c'.rsplit(',')
' a  b  c '.rsplit()
' a  b  c '.rsplit(none, 1)
'a,b,c'.rsplit(',', maxsplit=1)
ml.splitlines()
ml.splitlines(true)
ml.splitlines(keepends=true)
'a\x0bb\x0cc\x1cd\u2028e'.splitlines()
'a\n'.splitlines()
''.splitlines()
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('-')
'abc'.rpartition('-')
'abcabc'.replace('b', 'x')
'abcabc'.replace('b', 'x', 1)
'abc'.replace('', '-')
'abcabc'.replace('b', 'x', -1)
'abcabc'.replace('b', 'x', 0)
'prefix-a'.removeprefix('prefix-')
'a-suffix'.removesuffix('-suffix')
','.join(['a', 'b'])
','.join('abc')
','.join(d)
','.join(l)
'a\tb'.expandtabs(4)
'a\tb'.expandtabs()
'{} {}'.format(s, i)
'{0} {1} {0}'.format(1, 2)
'{a} {b}'.format(a=1, b='x')
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:05.1f}'.format(x)
'{:,}'.format(1234567)
'{!r}'.format('a')
'{a[b]}'.format(a=d)
'{}'.format(n)
'{}'.format(t)
'abc'.encode('utf-8') is defined
s[0]
s[-1]
s[1:4]
s[::-1]
s[::2]
s[100:]
s[100] is defined
l[0]
l[-1]
l[1:]
l[::-1]
l[9] is defined
d.a
d['a']
d.zzz is defined
d.get('b')
d.get('zzz')
d.get('zzz', 5)
d.keys()|list
d.values()|list
d.items()|list
d.copy()
l.copy()
l.count(1)
l.index(2)
l.index(9)
'b' in d
1 in d
2 in l
'lo' in s
'zz' not in s
d|length
s|length
l|length
n|length
s * 2
l * 2
l + [4]
l + (4,)
(1, 2) + (3,)
'a' + 1
'a' ~ 1 ~ n ~ t
i / 2
7 // 2
neg // 2
7.5 // 2
2 ** 3
2 ** -1
-2 ** 2
1 / 0
i + x
i - t
t + t
1 == 1.0
1 == true
'1' == 1
l == [3, 1, 2]
d == {'b': 1, 'a': [1, 2], 'c': none}
1 < 2 < 3
1 < 3 < 2
'a' < 'b'
[1, 2] < [1, 3]
none == none
none < 1
not n
not e
n or 'x'
s and 'x'
e or n
(e or n) is none
'x' if t else 'y'
'x' if n
('x' if n) is undefined
[1, 2, 3][1]
(1, 2)[0]
{'a': 1}['a']
{'a': 1}.a
{1: 'x'}[1]
[]
()
(1,)
{}
{'a': none, 'b': [true, 'x']}
['a', "it's", 'q"q']
['\n\t\\']
['é', '\u200b']
1.0
100000000000000000000.0
1e100
0.1 + 0.2
1e-7
-0.0
12345678901234567890
1_000
l|sort
l|sort(reverse=true)
words|sort
words|sort(case_sensitive=true)
rows|sort(attribute='v')
rows|sort(attribute='v,n', reverse=true)
d|dictsort
d|dictsort(reverse=true)
d|dictsort(by='value') is defined
{'b': 2, 'a': 1}|dictsort(false, 'value')
{'b': 2, 'A': 1}|dictsort
{'b': 2, 'A': 1}|dictsort(true)
l|first
l|last
[]|first is defined
s|first
l|min
l|max
[]|max is defined
words|min
rows|max(attribute='v')
l|sum
rows|sum('v')
rows|sum(attribute='v', start=10)
[]|sum
l|reverse|list
s|reverse
l|join
l|join('-')
rows|join(',', 'n')
rows|join(',', attribute='n')
rows|map(attribute='n')|list
rows|map(attribute='zzz', default='q')|list
words|map('upper')|list
words|map('replace', 'a', 'x')|list
nested|map('length')|list
nested|map('first')|join
rows|selectattr('v', 'equalto', 2)|list|length
rows|selectattr('v', '==', 2)|map(attribute='n')|list
rows|selectattr('v')|list|length
rows|rejectattr('v', 'gt', 1)|map(attribute='n')|join
[1, none, 0, 2]|select|list
[1, none, 0, 2]|reject|list
l|select('odd')|list
l|reject('odd')|list
l|select('gt', 1)|list
words|unique|list
words|unique(case_sensitive=true)|list
rows|unique(attribute='v')|map(attribute='n')|list
rows|groupby('v')|length
rows|groupby('v')|map(attribute='grouper')|list
l|batch(2)|list
l|batch(2, 0)|list
l|slice(2)|map('list')|list
l|slice(2, 0)|list
s|list
d|list
d|items|list
n|items|list
gone|items|list
s|upper
s|lower
s|title
'hello-world foo_bar'|title
s|capitalize
s|trim
'xax'|trim('x')
pad|trim
s|replace('o', '0')
s|replace('o', '0', 1)
s|truncate(8)
s|truncate(8, true)
s|truncate(8, true, '!')
'a b c d e f'|truncate(5, false, '…', 0)
s|wordcount
'one two three four'|wordwrap(8)
'abcdefghij'|wordwrap(4)
'a\nb'|indent
'a\nb'|indent(2, true)
'a\n\nb'|indent(2)
'a\n\nb'|indent(2, blank=true)
'a\nb'|indent('> ', first=true)
s|center(15)
'a'|center(4)
'42'|int
'4.7'|int
'x'|int
'x'|int(5)
'0x1f'|int(0, 16)
'1f'|int(base=16)
x|int
n|int
'2.5'|float
'x'|float
'x'|float(1.5)
2.567|round
2.567|round(2)
2.567|round(1, 'floor')
2.567|round(1, 'ceil')
2.5|round
3.5|round
-2.5|round
7|round
12.0|round|int
neg|abs
-2.5|abs
n|default('x')
gone|default('x')
e|default('x')
e|default('x', true)
e|d('x', boolean=true)
n|d('x', true)
n|string
l|string
x|string
t|string
d|string
'%s-%s'|format(1, 'a')
'%(a)s'|format(a=3)
'<a>'|escape
'<a href="x">&'|e
'<a>'|safe
'<a>'|forceescape
'<b>x</b> <i>y</i>'|striptags
'a b&c/é'|urlencode
{'a': 1, 'b': 'x y'}|urlencode
12345|filesizeformat
12345|filesizeformat(true)
1|filesizeformat
0|filesizeformat
{'a': 1, 'b': none}|xmlattr
d|attr('keys') is defined
d|tojson
d|tojson(indent=2)
l|tojson(indent=2)
[]|tojson(indent=2)
{}|tojson(indent=2)
u|tojson
u|tojson(ensure_ascii=true)
'</script>'|tojson
x|tojson
1.0|tojson
1e100|tojson
n|tojson
t|tojson
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{1: 'x', none: 'y'}|tojson
(1, 2)|tojson
d|pprint
range(3)|list
range(1, 7, 2)|list
range(5, 0, -2)|list
range(3)|length
range(3)[1]
range(3)|tojson is defined
dict(a=1, b=2)
dict({'a': 1}, b=2)
cycler('a', 'b').next()
joiner(',')()
lipsum is defined
namespace(a=1).a
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%A %B %-d %e %j %U %W %u %w')
strftime_now('%H:%M:%S %I %p %f %y %C %G %V %g')
strftime_now('%D %F %T %R %r %c %x %X %h')
strftime_now('%n%t%%%s' ) is string
strftime_now('%Z|%z|%P|%k|%l')
strftime_now('%-m/%-d/%-H %-I %-M %-S %-j %_d %^a %#b %03d')
s is gone
s|gone
s.gone()
d.gone()
gone.x
gone
gone ~ 'x'
gone + 1
n.x
n.x is defined
d.zzz.y
self is defined
loop is defined
true and false or true
True
None
none
[True, False, None]
"a" "b"
'\x41\u00e9\101\n'|tojson
'a\\nb'
'\q'
i is not none
not i is none
i is number and s is string
i in l or 3 in l
not 3 in l
i > 3 and i < 9
l[1:]|first
l|length > 2
-i|abs
-7|abs
2 + 3 * 4 - 1
'a' ~ 1 + 2
(l|sort)[0]
l|sort|first
{'a': 'x'}.items()|first
s.split(' ')[0].upper()
(s ~ '!').lower()
[s, s|upper]|join(' ')
d.items()|map('first')|list
{'x': l}['x'][0]
"%s"|format(s)
l is iterable and l is not string
messages is defined
s.__class__
''.__class__.__mro__
l.append(4)
d.update({'q': 1})
d.pop('a')
l.pop()
""".strip("\n").split("\n")


TEMPLATES = [
    "{% for a in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for a in l %}{{ loop.previtem }}<{{ a }}>{{ loop.nextitem }};{% endfor %}",
    "{% for a in l %}{{ loop.cycle('x', 'y') }}{% endfor %}",
    "{% for a in l %}{{ loop.changed(a > 1) }},{% endfor %}",
    "{% for a in l if a > 1 %}{{ loop.index }}{{ a }}{% else %}none{% endfor %}",
    "{% for a in [] %}{{ a }}{% else %}none{% endfor %}",
    "{% for a in gone %}{{ a }}{% else %}none{% endfor %}",
    "{% for a in n %}{{ a }}{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for c in s[:3] %}{{ c }}-{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }} {% endfor %}",
    "{% for a in l %}{% if a == 1 %}{% continue %}{% endif %}{{ a }}{% endfor %}",
    "{% for a in l %}{% if a == 1 %}{% break %}{% endif %}{{ a }}{% endfor %}",
    "{% for a in nested recursive %}{% if a is iterable %}[{{ loop(a) }}]{% else %}{{ a }}{{ loop.depth }}{% endif %}{% endfor %}",
    "{% set ns = namespace(x=0) %}{% for a in l %}{% set ns.x = ns.x + a %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.y = 'a' %}{{ ns.y }}",
    "{% set x = 0 %}{% for a in l %}{% set x = a %}{% endfor %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set x %}a{{ i }}{% endset %}{{ x }}",
    "{% set x | upper %}a{{ s }}{% endset %}{{ x }}",
    "{% macro m(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(a=3, b=4) }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}",
    "{% macro m(a) %}{{ a }}{{ varargs | join('-') }}{% endmacro %}{{ m(1) }}|{{ m(1, 2, 3) }}",
    "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, b=2) }}",
    "{% macro m() %}{{ varargs | length }}{{ kwargs.x }}{% endmacro %}{{ m(1, 2, x=5) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, c=2) }}",
    "{% macro m(a, b) %}{{ a }}{{ b is defined }}{% endmacro %}{{ m(1) }}",
    "{% macro m(x) %}{{ caller() }}{{ x }}{% endmacro %}{% call m(1) %}body{% endcall %}",
    "{% macro m() %}{{ caller(5) }}{% endmacro %}{% call(y) m() %}<{{ y }}>{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %} x {% endmacro %}[{{ m() | trim }}]{{ m.name }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{# comment #}x{#- c -#} y",
    "a\n{%- if t %}\n b\n{%- endif %}\nc",
    "a\n  {% if t %}\n  b\n  {% endif %}\nc\n",
    "a\r\n  {% if t %}\r\n  b\r\n  {% endif %}\r\nc\r\n",
    "a\r\n{{ s }}\r\nb",
    "a\rb\r{% if t %}\rc{% endif %}\r",
    "{{ 'a\r\nb' | tojson }}",
    "{{ s -}}   x   {{- i }}",
    "{%+ if t %} x {%+ endif %}",
    "x\n\n",
    "x\n",
    "  {{ s }}\n  {# c #}\n  y",
    "{% if n %}a{% elif i > 3 %}b{% else %}c{% endif %}",
    "{{ s ~ '\\n' }}{{ \"it's\" }}",
    "{% if s is defined and s %}y{% endif %}",
    "{% for m in rows %}{{ m.n }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for m in rows %}{% set x = '%s=%d' % (m.n, m.v) %}{{ x }}{{ ';' if not loop.last else '.' }}{% endfor %}",
    "{% if '%d' % i == '7' %}seven{% endif %}",
    "{{ {'a': '%s' % s}['a'] }}",
    "{{ [i % 2, '%s' % i] }}",
    "{{ '%s' % s if t else '%' }}",
    "{{ '%' }}{{ 'a %} b' }}",
    "{%- set a = 10 % 4 -%}{{ a }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f('%s' % 3) }}",
    "{% set j = joiner(', ') %}{% for a in l %}{{ j() }}{{ a }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% for g in rows | groupby('v') %}{{ g.grouper }}:{{ g.list | map(attribute='n') | join(',') }};{% endfor %}",
    "{% for v, items in rows | groupby('v') %}{{ v }}:{{ items | length }};{% endfor %}",
    "{% generation %}a{% endgeneration %}",
    "{{ raise_exception('stop') }}",
    "{% do l %}x",
    "{% include 'x' %}",
    "{{ d.items() }}",
    "{% set x = d.items() | list %}{{ x[0][0] }}",
    "{% for k, v in d | dictsort %}{{ k }}{% endfor %}",
    "{% for k, v in d | items %}{{ k }}{% endfor %}",
]

CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "  How\nare you?  ")],
    [("system", ""), ("user", "é🙂"), ("assistant", "<think>\nhm\n</think>\n\nok"), ("user", "x"), ("assistant", "y")],
    [("assistant", "first"), ("user", "Hi")],
]


# transformers and vLLM pass tool calls to templates with arguments as objects.
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city, \"now\" <or> later.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["°C", "°F"]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def call(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_CONVERSATIONS = [
    ([{"role": "user", "content": "Hi"}], TOOLS),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], TOOLS[:1]),
    (
        [
            {"role": "user", "content": "Weather in Bonn and Köln?"},
            {"role": "assistant", "content": "", "tool_calls": [
                call("000000001", "get_weather", {"city": "Bonn", "unit": "°C"}),
                call("000000002", "get_weather", {"city": "Köln \"<|im_end|>\"\n[INST]", "list": [1, 2.5, None, True, {"a": "b"}]}),
            ]},
            {"role": "tool", "content": "18", "tool_call_id": "000000001", "name": "get_weather"},
            {"role": "tool", "content": "{\"degrees\": 19}", "tool_call_id": "000000002", "name": "get_weather"},
            {"role": "assistant", "content": "18 and 19."},
            {"role": "user", "content": "Thanks. And now?"},
        ],
        TOOLS,
    ),
    (
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call("abcdefghi", "now", {})]},
            {"role": "tool", "content": "12:00", "tool_call_id": "abcdefghi", "name": "now"},
        ],
        None,
    ),
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):
        """Renders the body of the tag with which transformers marks the assistant's messages."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return env


def render(source, context):
    try:
        return {"text": environment().from_string(source).render(**context)}
    except Exception as error:
        return {"error": type(error).__name__}


def main():
    table = []
    for source in ["{{ " + expression + " }}" for expression in EXPRESSIONS] + TEMPLATES:
        table.append({"source": source, **render(source, CONTEXT)})
    chats = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        source = path.read_bytes().decode()
        for turns in CONVERSATIONS:
            for generate in [False, True]:
                messages = [{"role": role, "content": content} for role, content in turns]
                context = {
                    "messages": messages, "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>",
                    "add_generation_prompt": generate,
                }
                chats.append({
                    "template": path.name, "sha256": hashlib.sha256(source.encode()).hexdigest(),
                    "messages": messages, "add_generation_prompt": generate, **render(source, context),
                })
    tool_chats = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        source = path.read_bytes().decode()
        if "tools" not in source:
            continue
        for messages, tools in TOOL_CONVERSATIONS:
            for generate in [False, True]:
                context = {
                    "messages": messages, "tools": tools, "documents": None, "bos_token": "<s>", "eos_token": "</s>",
                    "add_generation_prompt": generate,
                }
                tool_chats.append({
                    "template": path.name, "messages": messages, "tools": tools, "add_generation_prompt": generate,
                    **render(source, context),
                })
    out = pathlib.Path(__file__).with_name("golden.json")
    lines = [json.dumps(row, ensure_ascii=False) for row in table]
    chat_lines = [json.dumps(row, ensure_ascii=False) for row in chats]
    tool_lines = [json.dumps(row, ensure_ascii=False) for row in tool_chats]
    out.write_text(
        '{"jinja2": ' + json.dumps(jinja2.__version__) + ',\n"context": ' + json.dumps(CONTEXT, ensure_ascii=False)
        + ',\n"table": [\n' + ",\n".join(lines) + '\n],\n"chats": [\n' + ",\n".join(chat_lines) + '\n],\n"tool_chats": [\n' + ",\n".join(tool_lines) + "\n]}\n"
    )


main()
