// Everything that is compiled for the instruction set ART_TARGET.
#include "assignment_batch.hpp"
#include "frame_matching.hpp"
#include "processor.hpp"

namespace art::ART_TARGET {

extern const Processor kProcessor;
const Processor kProcessor{solve_bytes, solve, match_frames_bytes, match_frames};

}  // namespace art::ART_TARGET
