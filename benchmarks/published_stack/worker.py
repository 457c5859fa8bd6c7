"""One PPO step of the published stack (TRL 0.7.4), timed: run by ``benchmarks.cost.engine_processes`` in that stack.

As the paper's loop does it: one prompt at a time through ``generate`` with attention maps, the reward model's forward
with attention maps of every layer, then ``PPOTrainer.step``. "batched" generates all responses in one left-padded
batch instead, by TRL's own ``generate`` of a list of prompts. A line of JSON in is a request, a line out its answer.
"""

import ctypes
import json
import resource
import sys
import time

import torch
from tokenizers import Tokenizer, models
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer


class Stack:
    """Models and trainer in the paper's settings."""

    def __init__(self, request):
        eos, self.device = request["eos_id"], torch.device(request["device"])
        policy = AutoModelForCausalLMWithValueHead.from_pretrained(request["policy"])
        reference = AutoModelForCausalLMWithValueHead.from_pretrained(request["policy"])
        self.reward = GPT2ForSequenceClassification.from_pretrained(request["reward"]).eval().to(self.device)
        words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(eos + 1)}, unk_token="t0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{eos}", eos_token=f"t{eos}")
        config = PPOConfig(
            learning_rate=1.41e-5,
            batch_size=request["rollout_batch_size"],
            mini_batch_size=request["minibatch_size"],
            ppo_epochs=4,
            remove_unused_columns=False,
            accelerator_kwargs={"cpu": request["device"] == "cpu"},
        )
        trained = filter(lambda p: p.requires_grad, policy.parameters())
        # TRL's, but fused
        optimizer = torch.optim.Adam(trained, lr=config.learning_rate, fused=request["fused"] or None)
        optimizer.register_step_post_hook(self._count)
        self.trainer = PPOTrainer(config, policy, reference, tokenizer, optimizer=optimizer)
        self.eos, self.optimizer_steps, self.batched = eos, 0, request["batched"]

    def _count(self, *_):
        self.optimizer_steps += 1

    def generate(self, prompts, lengths):
        """Prompts and a response to each, of exactly the given length, as tensors."""
        queries = [torch.tensor(prompt, device=self.device) for prompt in prompts]
        draw = self._in_one_batch if self.batched else self._one_by_one
        return queries, draw(queries, lengths)

    def _one_by_one(self, queries, lengths):
        responses = []
        for query, length in zip(queries, lengths, strict=True):
            output = self.trainer.generate(
                query,
                output_attentions=True,
                return_dict_in_generate=True,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=self.eos,
                eos_token_id=self.eos,
            )
            responses.append(output.sequences[0, len(query) :])
        return responses

    def _in_one_batch(self, queries, lengths):
        """EOS is banned, so every row goes on to the longest length, and is cut after."""
        drawn = self.trainer.generate(
            queries,
            batch_size=len(queries),
            return_prompt=False,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            suppress_tokens=[self.eos],
            max_new_tokens=max(lengths),
            pad_token_id=self.eos,
        )
        return [response[:length] for response, length in zip(drawn, lengths, strict=True)]

    def _clock(self):
        """CPU seconds of this process, or, on a card, seconds of the clock once it is idle."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self):
        if self.device.type == "cpu":
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return torch.cuda.max_memory_allocated()

    def timed_generate(self, prompts, lengths):
        """Seconds of generation alone, and the lengths that came out."""
        start = self._clock()
        _, responses = self.generate(prompts, lengths)
        return {"cpu_seconds": self._clock() - start, "lengths": [len(response) for response in responses]}

    def step(self, prompts, lengths):
        """A PPO step on the prompts, responses of exactly the given lengths."""
        self.optimizer_steps = 0
        scores = []
        start = self._clock()
        queries, responses = self.generate(prompts, lengths)
        with torch.no_grad():
            for query, response in zip(queries, responses, strict=True):
                output = self.reward(torch.cat([query, response])[None], output_attentions=True)
                scores.append(output.logits[0, 1] - output.logits[0, 0])
        self.trainer.step(queries, responses, scores)
        return {
            "cpu_seconds": self._clock() - start,
            "tokens": sum(len(response) for response in responses),
            "optimizer_steps": self.optimizer_steps,
            "peak_bytes": self._peak(),
        }

    @torch.no_grad()
    def fixed(self, prompt, response):
        """Summed log-probability and score of one given response: the same numbers as ours, or not the same maths."""
        ids = torch.tensor([prompt + response], device=self.device)
        logits, *_ = self.trainer.model(ids)
        logprobs = logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
        score = self.reward(ids).logits[0]
        return {"logprob": float(logprobs.sum()), "score": float(score[1] - score[0])}


def main():
    """Build the case that the command line holds, then answer a line of JSON with another."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = json.loads(sys.argv[1])
    if case["keep_freed_memory"]:  # as rlhf_core.run.freed_memory does
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**30)
    stack = Stack(case)
    for line in sys.stdin:
        request = json.loads(line)
        ask = {"fixed": stack.fixed, "generate": stack.timed_generate, "step": stack.step}[request.pop("do")]
        answer = ask(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    main()
