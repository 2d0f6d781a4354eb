#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tests/make_chat.py: writes tests/data/chats.json: chats as the templates of published models give
them, rendered by Jinja as Hugging Face's libraries do. Needs the PyPI package jinja2; the tests need
the file alone. SmolLM2's template is its own; of the others what matters for plain chats."""
import json
import os
import re

from jinja2.sandbox import ImmutableSandboxedEnvironment

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == "user" %}
        {%- set ns.found = true %}
        {%- set ns.last_query_index = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

LLAMA31 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

GEMMA3 = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {{ message['content'] | trim }}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
GEMMA3 = GEMMA3.replace('else "") }}\n    {{ m', 'else "") -}}\n    {{ m').replace("| trim }}\n", "| trim -}}\n")

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")


def mistral(user, assistant, where):
    """Versions differ in spaces and in where the system message stands."""
    return r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.WHERE and system_message is defined %}
            {{- "USER" + system_message + "\n\n" + message["content"] + "END" }}
        {%- else %}
            {{- "USER" + message["content"] + "END" }}
        {%- endif %}
    {%- else %}
        {{- ASSISTANT + eos_token}}
    {%- endif %}
{%- endfor %}
""".replace("WHERE", where).replace("USER", user[0]).replace("END", user[1]).replace("ASSISTANT", assistant)


MISTRAL7 = r"""{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

INST = ["[INST]", "[/INST]"]
# name, family, template, special tokens (the first two begin and end text), SentencePiece's kind,
# space in front, begin with bos by itself
MODELS = [
    ("SmolLM2", "chatml", SMOLLM2, ["<|im_start|>", "<|im_end|>"], False, False, False),
    ("Qwen 2.5", "chatml", QWEN25, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], False, False, False),
    ("Qwen 3", "chatml", QWEN3, ["<|endoftext|>", "<|im_end|>", "<|im_start|>"], False, False, False),
    ("Llama 3", "llama3", LLAMA3, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], False, False, True),
    ("Llama 3.1", "llama3", LLAMA31, ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"], False, False, True),
    ("Gemma 3", "gemma", GEMMA3, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], True, False, True),
    ("Llama 2", "llama2", LLAMA2, ["<s>", "</s>"], True, True, True),
    ("Mistral v1", "mistral", mistral((" [INST] ", " [/INST]"), '" " + message["content"]', "first"), ["<s>", "</s>"], True, True, True),
    ("Mistral v1, no space", "mistral", mistral((" [INST] ", " [/INST]"), '" " + message["content"]', "first"), ["<s>", "</s>"], True, False, True),
    ("Mistral v3", "mistral", mistral(("[INST] ", "[/INST]"), '" " + message["content"]|trim', "last"), ["<s>", "</s>"] + INST, True, True, True),
    ("Mistral v3, no space", "mistral", mistral(("[INST] ", "[/INST]"), '" " + message["content"]|trim', "last"), ["<s>", "</s>"] + INST, True, False, True),
    ("Mistral Nemo", "mistral", mistral(("[INST]", "[/INST]"), 'message["content"]', "last"), ["<s>", "</s>"] + INST, False, False, True),
    ("Mistral Small 3", "mistral", MISTRAL7, ["<s>", "</s>"] + INST + ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], False, False, True),
    ("Zephyr", "zephyr", ZEPHYR, ["<s>", "</s>"], True, True, False),
]

S, U, A = "system", "user", "assistant"
CHATS = [
    [(U, "Hi")],
    [(S, "Be brief."), (U, "Hello there")],
    [(U, "H"), (A, "Hm"), (U, "Hi!")],
    [(S, "Rules:\n- one\n- two"), (U, "Hello"), (A, "Hi"), (U, "How?"), (A, "So."), (U, "Ah")],
    [(U, " \n Hi \u00a0\u3000"), (A, "  Hm\n\n"), (U, "\tHi\u2003\x1f")],
    [(S, "  Be \n"), (U, "\n\n Hello  ")],
    [(U, ""), (A, ""), (U, "")],
    [(S, ""), (U, "Hi")],
    [(S, "Be."), (U, " \u2028 ")],
    [(U, "Hi"), (A, "<think>\nHm\n</think>\n\nHello</think>\n\n\nAh"), (U, "Hi"), (A, "</think>"), (U, "No <think> here</think>x")],
    [(U, "\u65e5\u672c \U0001f469\u200d\U0001f680 e\u0301 \u0645\u0631\u062d\u0628\u0627"), (A, "{{ x }} {% y %} \\n 'q' \"q\""), (U, "[INST <|im <start")],
    [(U, "Hi"), (A, "Hello")],
    [(S, "Be."), (U, "Hi"), (A, " Hello ")],
]


def render(template, chat, prompt, bos, eos):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return env.from_string(template).render(messages=[{"role": r, "content": c} for r, c in chat],
                                            add_generation_prompt=prompt, bos_token=bos, eos_token=eos)


def make_case(name, family, template, special, spm, space, add_bos):
    chats = []
    for chat in CHATS:
        # Where an answer is last, which nothing is to follow, these add empty thoughts to it or leave
        # out the system message; we don't.
        if chat[-1][0] == A and (name == "Qwen 3" or "loop.last and system" in template and chat[0][0] == S):
            continue
        for prompt in (False, True):
            text = render(template, chat, prompt, special[0], special[1])
            if space:  # what follows a special token has a space in front that isn't text
                text = re.sub("(" + "|".join(map(re.escape, special)) + ") ", r"\1", text)
            chats.append({"messages": [list(m) for m in chat], "prompt": prompt, "text": text})
    return {"name": name, "family": family, "template": template, "special": special, "spm": spm, "space": space,
            "add_bos": add_bos, "chats": chats}


def main():
    with open(os.path.join(DATA, "chats.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(make_case(*m), separators=(",", ":")) for m in MODELS) + "\n]\n")


main()
